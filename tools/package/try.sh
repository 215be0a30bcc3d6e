#!/usr/bin/env bash
# Tries the packages from nothing, where Debian's mmdebstrap can make a system: installs them, asks the program, upgrades with a changed file of the operator's, removes and purges; the same of the .rpm with an RPM database of its own.
# The units run in a system of their own that systemd boots. Needs root. What could not be tried is said: "NOT RUN: why".
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${VERSION:?make package-test says it}" "${COMMIT:?make package-test says it}"
export VERSION COMMIT
[ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || { echo 'NOT RUN: needs root on a Debian system'; exit 0; }
export DEBIAN_FRONTEND=noninteractive
for program in mmdebstrap rpm lintian systemd-nspawn; do
  command -v "$program" >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends mmdebstrap rpm lintian systemd-container; } >/dev/null
done
work=$(mktemp -d)
root=$work/root
trap 'umount "$root/proc" 2>/dev/null; rm -rf --one-file-system "$work"' EXIT
step() { printf '── %s\n' "$*"; }
inside() { chroot "$root" "$@"; }
fail() { printf 'FAIL: %s\n' "$*" >&2; exit 1; }

if [ -z "${PACKAGES:-}" ]; then # two folders of packages that are made already: the same twice, and a higher version
  PACKAGES="$work/one $work/two $work/next"
  DIST=$work/one ARCH=amd64 tools/package/build.sh
  (umask 077; TZ=Pacific/Apia LC_ALL=C DIST=$work/two ARCH=amd64 tools/package/build.sh)
  DIST=$work/next ARCH=amd64 VERSION=999.0.0 tools/package/build.sh
fi
read -r one two next <<<"$PACKAGES"

step 'the same bytes twice'
(cd "$one" && sha256sum -- *) >"$work/sums"
(cd "$two" && sha256sum --check "$work/sums")
step lintian
lintian --fail-on error,warning "$one"/*.deb

step 'a system from nothing'
mkdir "$root" "$work/booted"
if [ -z "${SYSTEM:-}" ]; then # one that is made already
  SYSTEM=$work/system.tar
  mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv,dbus,man-db,bash-completion bookworm "$SYSTEM"
fi
for to in "$root" "$work/booted"; do tar -C "$to" -xf "$SYSTEM" --exclude='./dev/*'; done
mkdir -p "$root/dev" && { [ -c "$root/dev/null" ] || mknod -m 666 "$root/dev/null" c 1 3; }
mount -t proc proc "$root/proc" # the broker finds its backends by it
cp "$one"/*.deb "$root/one.deb" && cp "$next"/*.deb "$root/next.deb"

step 'install: nothing is enabled, and nothing but the package is there'
inside dpkg -i /one.deb
inside credential-broker version
inside credential-broker backends
for unit in service socket; do
  state=$(inside systemctl is-enabled "credential-broker.$unit" || true)
  [ "$state" = disabled ] || fail "credential-broker.$unit is $state after the installation"
done
[ "$(ls "$root/etc/credential-broker")" = environment ] || fail 'the package wrote a configuration'
step 'the examples, manual pages, completions'
said=$(inside credential-broker --config /usr/share/doc/credential-broker/examples/agent.yaml validate 2>&1) || true
grep -qx '1 problem' <<<"$said" && grep -q 'lstat /opt/providers: no such file' <<<"$said" || fail "of an example only a file of the operator's is missing, and validate says: $said"
zgrep -q 'show-secrets' "$root"/usr/share/man/man8/credential-broker-get.8.gz || fail 'no manual page of get'
inside man -w 8 credential-broker-agent >/dev/null || fail 'man does not find the pages'
inside bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader credential-broker || true; complete -p credential-broker' || fail 'no completion in bash'

step "the operator's files: valid, and kept by an upgrade"
printf '{"auths":{"registry.example":{"auth":"cm9ib3Q6YS1zZWNyZXQ="}}}' >"$root/etc/credential-broker/docker.json"
chmod 600 "$root/etc/credential-broker/docker.json"
cat >"$root/etc/credential-broker/config.yaml" <<'Y'
apiVersion: credential-broker.io/v1alpha1
kind: BrokerConfig
agent: {socket: /run/credential-broker/agent.sock}
providers:
- {name: node-files, backend: dockerconfig, matchImages: [registry.example], defaultCacheDuration: 10m, config: {file: /etc/credential-broker/docker.json}}
Y
echo 'AWS_REGION=eu-central-1' >"$root/etc/credential-broker/environment"
inside credential-broker validate
inside credential-broker get --no-agent registry.example/app
inside systemctl enable credential-broker.socket credential-broker.service
find "$root/etc/credential-broker" -type f -exec sha256sum {} + >"$work/kept"
inside dpkg -i /next.deb
grep -q 999 <<<"$(inside credential-broker version)" || fail 'the upgrade did not bring the new program'
sha256sum --quiet --check "$work/kept" || fail "the upgrade changed the operator's files"
inside systemctl is-enabled credential-broker.socket >/dev/null || fail 'the upgrade disabled the socket'

step 'remove, and purge'
inside dpkg -r credential-broker
sha256sum --quiet --check "$work/kept" || fail "the removal changed the operator's files"
[ ! -e "$root/usr/libexec/credential-broker" ] && [ ! -e "$root/usr/bin/credential-broker" ] || fail 'the removal left programs'
inside dpkg -P credential-broker
[ -e "$root/etc/credential-broker/config.yaml" ] || fail 'the purge took what the operator wrote'
[ ! -e "$root/etc/credential-broker/environment" ] || fail "the purge left the package's own file"
[ -z "$(find "$root/etc/systemd" -name 'credential-broker*')" ] || fail 'the purge left links of the units'

step 'the units, where systemd is the first process'
cp "$one"/*.deb "$work/booted/one.deb" && cp "$next"/*.deb "$work/booted/next.deb"
cp tools/package/booted.sh "$work/booted/booted.sh"
mkdir "$work/booted/opt/providers" # each backend's sources are stood up in it
(cd test/packages && CGO_ENABLED=0 go build -o "$work/booted/opt/providers/" ./providers)
nspawn=(--quiet --register=no --keep-unit --private-network --boot --directory="$work/booted")
vault=$(go run ./test/vaultserver/build -built)
if [ -n "$vault" ]; then nspawn+=(--bind-ro="$vault:/opt/vault"); fi
# What the unit locks memory by, and containers have not.
if ((0x$(awk '$1 == "CapEff:" { print $2 }' /proc/self/status) >> 14 & 1)); then nspawn+=(--capability=CAP_IPC_LOCK); fi
printf '[Service]\nType=idle\nExecStart=/bin/bash /booted.sh\nExecStopPost=/bin/systemctl poweroff\nStandardOutput=file:/result\nStandardError=inherit\n' >"$work/booted/etc/systemd/system/booted.service"
mkdir -p "$work/booted/etc/systemd/system/multi-user.target.wants"
ln -s ../booted.service "$work/booted/etc/systemd/system/multi-user.target.wants/"
timeout 300 systemd-nspawn "${nspawn[@]}" >"$work/console" 2>&1 || tail -n 20 "$work/console"
cat "$work/booted/result"
grep -qx 'all of the units came off' "$work/booted/result" || fail 'the units do not do what is promised of them'

step 'rpm: install, verify, upgrade, erase'
rm -rf "$root/etc/credential-broker" && mkdir -p "$work/rpm"
rpm=(rpm --dbpath "$work/rpm/db" --root "$root" --nodeps)
mkdir -p "$root$work/rpm/db"
"${rpm[@]}" -i "$one"/*.rpm
inside credential-broker version >/dev/null
"${rpm[@]}" -V credential-broker || fail 'rpm finds the installation changed'
echo 'AWS_REGION=eu-central-1' >"$root/etc/credential-broker/environment"
echo 'apiVersion: mine' >"$root/etc/credential-broker/config.yaml"
"${rpm[@]}" -U "$next"/*.rpm
grep -q 999 <<<"$(inside credential-broker version)" || fail 'the upgrade did not bring the new program'
grep -q '^AWS_REGION' "$root/etc/credential-broker/environment" || fail "the upgrade changed the operator's environment"
"${rpm[@]}" -e credential-broker
[ ! -e "$root/usr/libexec/credential-broker" ] || fail 'the removal left programs'
[ -e "$root/etc/credential-broker/config.yaml" ] && [ -e "$root/etc/credential-broker/environment.rpmsave" ] || fail "the removal took the operator's files"
echo 'all of it came off'
ls -l "$one"
