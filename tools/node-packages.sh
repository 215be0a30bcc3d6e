#!/usr/bin/env bash
# Prints the directory below which containerd, runc, docker-registry and etcd of Debian's lie, for test/node: downloaded and unpacked below the user's cache directory, not installed, so that none of
# Debian's services is set up or started. Fails with "NOT RUN: why" where that cannot be.
set -euo pipefail
packages=(containerd runc docker-registry etcd-server)
root=${XDG_CACHE_HOME:-$HOME/.cache}/credential-broker/node-packages
why() { echo "NOT RUN: $1" >&2; exit 1; }

complete() {
  local program
  for program in usr/bin/containerd usr/bin/containerd-shim-runc-v2 usr/sbin/runc usr/bin/docker-registry usr/bin/etcd; do [ -x "$1/$program" ] || return 1; done
}

if ! complete "$root"; then
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || why "this is no Debian, of whose packages (${packages[*]}) the node is made"
  mkdir -p "$(dirname "$root")"
  work=$(mktemp -d "$root.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  chmod 755 "$work" # apt downloads as a user of its own
  if [ "$(id -u)" -eq 0 ]; then apt-get update -qq >&2 || true; fi
  (cd "$work" && apt-get download -qq "${packages[@]}" >&2) || why "apt-get could not download ${packages[*]}"
  for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/root"; done
  complete "$work/root" || why "Debian's packages (${packages[*]}) are not what they were: a program is missing"
  if ldd "$work/root/usr/sbin/runc" | grep -q 'not found'; then why "runc lacks a library: apt-get install libseccomp2"; fi
  rm -rf "$root" && mv "$work/root" "$root"
fi
echo "$root"
