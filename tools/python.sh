#!/usr/bin/env bash
# Makes sure that there is a Python with grpcio, which runs examples/backend-python; installs it where that is possible without asking anybody: Debian's packages for root, else with pip into a folder of its own
# in the user's cache, where the example's tests look. Without it they say what they could not run.
set -euo pipefail
cache=${XDG_CACHE_HOME:-$HOME/.cache}
[ "$(uname -s)" != Darwin ] || cache=$HOME/Library/Caches
own=$cache/credential-broker/python
for python in /usr/bin/python3 python3 "$own/bin/python3"; do
  if "$python" -I -c 'import grpc, google.protobuf' 2>/dev/null; then exit; fi
done
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "there is no Python with grpcio: installing Debian's"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-grpcio python3-protobuf; } >/dev/null || true
elif command -v python3 >/dev/null; then
  echo "there is no Python with grpcio: installing it with pip in $own"
  { python3 -m venv "$own" && "$own/bin/pip" install --quiet grpcio 'protobuf>=4.21,<6'; } >/dev/null 2>&1 || true
fi
