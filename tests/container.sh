#!/usr/bin/env bash
# Build the image and run pbu in it, without a Docker engine. It has to run as root and needs the
# Debian packages buildah and mmdebstrap, and 30 GB free in $TMPDIR while it runs (nothing stays).
#   tests/container.sh                          # pbu demo, as the image's user and as another
#   ARGS=--help SUITE=trixie tests/container.sh
#   STORAGE_DRIVER=overlay tests/container.sh   # where the kernel allows it
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
suite=${SUITE:-bookworm}
read -ra args <<<"${ARGS:-demo --output demo}"
TMPDIR=$(mktemp -d "${TMPDIR:-/var/tmp}/pbu-container.XXXXXX")
export TMPDIR BUILDAH_ISOLATION=chroot
say() { printf '%s %4ds  %s\n' '==' "$SECONDS" "$*"; }
buildah() { # with --root the driver has to be an option; the environment is not read
    command buildah --root "$TMPDIR/storage" --runroot "$TMPDIR/run" \
        --storage-driver "${STORAGE_DRIVER:-vfs}" "$@"
}
remove() {
    buildah rm --all >/dev/null || true
    umount "$TMPDIR/storage/overlay" 2>/dev/null || true # overlay's own mount, which `buildah rm` leaves
    if grep -F " $TMPDIR/" /proc/self/mountinfo; then
        echo "still mounted, so not removed: $TMPDIR" >&2
    else
        rm -rf "$TMPDIR"
    fi
}
trap remove EXIT
trap 'exit 130' INT TERM

# What this machine's pip needs to reach its registry. It is mounted for the build; no layer has it.
authorities=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
inside=/etc/ssl/certs/ca-certificates.crt
{
    printf '[global]\ncert = %s\n' "$inside"
    python3 -m pip config list 2>/dev/null | sed -nE \
        "s/^[^=]*\.(index-url|extra-index-url|trusted-host|proxy)='(.*)'$/\1 = \2/p" | grep -v file: |
        sort -u -t= -k1,1
} >"$TMPDIR/pip.conf" || true
mounts=(--volume "$TMPDIR/pip.conf:/etc/pip.conf:ro" --volume "$authorities:$inside:ro")

say "base: Debian $suite"
mmdebstrap --quiet --variant=minbase \
    --include=python3,python3-venv,python3-pip,ca-certificates "$suite" "$TMPDIR/base.tar"
base=$(buildah from scratch)
buildah add --quiet "$base" "$TMPDIR/base.tar" / >/dev/null
buildah commit --quiet --rm "$base" localhost/base >/dev/null
rm "$TMPDIR/base.tar"

say "image"
buildah bud --quiet --layers=false "${mounts[@]}" --build-arg BASE=localhost/base \
    --tag localhost/pbu "$root"
say "built: $(buildah images --format '{{.Size}}' localhost/pbu)"

container=$(buildah from localhost/pbu)
read -ra entrypoint < <(buildah inspect \
    --format '{{range .OCIv1.Config.Entrypoint}}{{.}} {{end}}{{println}}' "$container")
for user in "$(buildah inspect --format '{{.OCIv1.Config.User}}' "$container")" 54321:54321; do
    work=$TMPDIR/work-${user%:*}
    install --directory --owner "${user%:*}" --group "${user#*:}" "$work"
    say "as $user: ${entrypoint[*]} ${args[*]}"
    buildah run --user "$user" --volume "$work:/work" "$container" -- "${entrypoint[@]}" "${args[@]}"
    strays=$(find "$work" ! -user "${user%:*}")
    [[ $user == [1-9]* && -z $strays ]] || { say "as root, or files of another owner: $strays"; exit 1; }
    say "done"
done
