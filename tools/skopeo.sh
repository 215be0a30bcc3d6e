#!/usr/bin/env bash
# Makes sure that there is skopeo, one of the clients of test/clients; installs it where that is possible without asking anybody. Without it the tests say what they could not run.
set -euo pipefail
if ! command -v skopeo >/dev/null && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "there is no skopeo: installing it"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends skopeo; } >/dev/null || true
fi
