#!/usr/bin/env bash
# Makes sure that there is valgrind, which counts instructions for test/steady; installs it where that is possible without asking anybody. Without it the test says what it could not run.
set -euo pipefail
if ! command -v valgrind >/dev/null && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "there is no valgrind: installing it"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends valgrind; } >/dev/null || true
fi
