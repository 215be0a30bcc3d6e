"""An example of a backend: it reads "user:password" from a file for each registry host."""

import os
import stat

import serve
from backend_pb2 import SCOPE_REGISTRY, Credential, GetCredentialsResponse


class UserFile:
    def __init__(self, files):
        self.files = files

    def credentials(self, request, call):
        """Answers for one image: "host[:port]/path", without tag."""
        host = request.image.partition("/")[0]
        file = self.files.get(host)
        if file is None:
            return GetCredentialsResponse()  # none for this image, which is not a failure
        try:
            with open(file, encoding="utf-8") as f:
                content = f.read().strip()
        except OSError as e:
            raise serve.Unavailable(f"read the password for {host}: {file}: {e.strerror}") from None
        except ValueError:  # what Python says of it quotes a byte
            content = ""
        user, colon, password = content.partition(":")
        if not colon:
            raise serve.Refused(f"{file} does not hold user:password")  # never quote what it does hold
        return GetCredentialsResponse(
            scope=SCOPE_REGISTRY,  # every image of this host gets the same answer
            credentials=[Credential(key=host, username=user, password=password)],
        )

    def check(self, request, call):
        """Says, before anybody pulls, whether the files are there."""
        for host, file in self.files.items():
            try:
                mode = stat.S_IMODE(os.stat(file).st_mode)
            except OSError as e:
                raise serve.Misconfigured(f'files["{host}"]', f"{file}: {e.strerror}: write user:password into it") from None
            if mode & 0o077:
                raise serve.Misconfigured(f'files["{host}"]', f"{file} can be read by others (mode {mode:o}): chmod 600 it")


def configure(settings, provider):
    """Makes the backend from the provider's `config`, without the network."""
    serve.known(settings, ["files"])
    files = settings.get("files")
    if not isinstance(files, dict) or not files:
        raise serve.Misconfigured("files", 'want at least one, such as {"registry.example": "/etc/registry/password"}')
    for host, file in files.items():
        if not isinstance(file, str):
            raise serve.Misconfigured(f'files["{host}"]', "want the path of a file")
    return UserFile(files)


if __name__ == "__main__":
    serve.run("userfile-python", "1.0.0", configure)
