#!/usr/bin/env bash
# Makes sure that there is a C compiler, which the race detector needs; installs one where that is possible without asking anybody.
set -euo pipefail
cc=$(go env CC)
there() { command -v "${cc%% *}" >/dev/null; }
if there; then exit 0; fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "there is no C compiler ($cc): installing gcc"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev; } >/dev/null || true
fi
if ! there; then
  echo "NOT RUN: the race detector needs a C compiler, and there is no $cc: install gcc" >&2
  exit 1
fi
