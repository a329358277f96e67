"""Taking saved files apart, and putting others together."""

import io
import json
import zipfile


def parts(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members):
    """An archive with right checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def edited(path, edit):
    """Change the JSON of a file by a function of its estimator."""
    members = parts(path)
    document = json.loads(members["estimator.json"])
    edit(document["estimator"]["$estimator"])
    members["estimator.json"] = json.dumps(document).encode()
    path.write_bytes(packed(members))


def set_item(*where, to):
    def edit(node):
        for key in where[:-1]:
            node = node[key]
        node[where[-1]] = to

    return edit
