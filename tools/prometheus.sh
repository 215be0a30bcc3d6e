#!/usr/bin/env bash
# Prints the path of a program of Prometheus (promtool, prometheus), which on a Debian system root can install. Fails with "NOT RUN: why" where there is none.
set -euo pipefail
program=$1
if ! command -v "$program" >/dev/null && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus; } >/dev/null || true
fi
command -v "$program" || {
  echo "NOT RUN: there is no $program, of Debian's package prometheus" >&2
  exit 1
}
