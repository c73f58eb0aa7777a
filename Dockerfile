# pbu for GPU hosts.
#   docker build -t pbu .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --volume "$PWD:/work" pbu \
#       unlearn model.safetensors --forget class8
# Checkpoint and images are mounted and never part of the image. With --user the outputs belong to
# the caller, whatever the uid, because pbu writes only to /work and /tmp.

# Any image with Python >= 3.11, venv and pip will do. The default has no CUDA, because torch's
# wheels bring their own CUDA libraries and the NVIDIA container toolkit brings the host's driver.
# nvidia/cuda:*-base has no Python, and its libcudart would not be used.
ARG BASE=python:3.13-slim-trixie

# The dependencies have their own stage here and their own layer below, so that a change in pbu_cli/
# rebuilds and ships kilobytes instead of gigabytes. Two things are done to the dependencies:
# - triton (1 GB) is removed. It compiles kernels at run time, which needs a C compiler, and the image
#   has none.
# - Bytecode is compiled now. A user who is not root could not store it later and would wait for it
#   at every start. It is not checked against time stamps, because COPY may change them. Some packages
#   contain files for other Python versions, which do not compile: hence the `|| true`.
FROM ${BASE} AS dependencies
WORKDIR /build
COPY pyproject.toml requirements.lock ./
RUN python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*project['dependencies'], sep='\n')" > requirements.txt \
    && python3 -m venv --without-pip /opt/pbu \
    && python3 -m pip --python /opt/pbu/bin/python install --no-cache-dir --no-compile -r requirements.txt -c requirements.lock \
    && python3 -m pip --python /opt/pbu/bin/python uninstall --yes triton \
    && { python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/pbu/lib || true; }

FROM ${BASE} AS wheel
WORKDIR /build
COPY . .
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM ${BASE}
LABEL org.opencontainers.image.title="pbu" \
      org.opencontainers.image.description="Make a trained classifier forget a class, from its checkpoint and the images of that class alone" \
      org.opencontainers.image.licenses="Apache-2.0"
# HOME and USER: a uid may have no passwd entry, and libraries ask for a cache folder and a name.
# No bytecode is written at run time: it would land beside the user's own --arch FILE.py.
ENV HOME=/tmp \
    USER=pbu \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The python images come without bytecode for the standard library, so it is compiled here too.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp pbu \
    && install --directory --mode 1777 /work \
    && python3 -m compileall -q -j 0 -x packages/ "$(python3 -c 'import os; print(os.path.dirname(os.__file__))')"
COPY --from=dependencies /opt/pbu /opt/pbu
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    python3 -m pip --python /opt/pbu/bin/python install --no-cache-dir --no-deps /dist/*.whl
ENV PATH=/opt/pbu/bin:$PATH
USER 10001:10001
WORKDIR /work
# pbu is process 1, so that it receives the SIGTERM of `docker stop`. It has a handler for it; process
# 1 ignores a signal without one.
ENTRYPOINT ["pbu"]
CMD ["--help"]
