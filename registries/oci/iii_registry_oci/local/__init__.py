"""Images in files and folders of this machine.

Whoever made them is a stranger like any registry. Nothing of an archive is unpacked under a name of its own, no link is
followed, and only regular files are opened: skopeo 1.9.3 unpacks OCI archives through symbolic links to anywhere, waits
for ever on a FIFO, and opens whatever an image layout links to.
"""
