"""Published methods that read the forget images alone, as pbu itself does.

Controls that read the forget images too, but are no published method, stand in `controls`.
"""
