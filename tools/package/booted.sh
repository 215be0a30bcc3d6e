#!/usr/bin/env bash
# What tools/package/try.sh has a system do that systemd has booted: the agent is socket-activated and locked down, is succeeded by an upgrade, and ends in order, before and after that. Then every backend does its job so.
set -euo pipefail
# What is searched by grep -q is gathered first: a program whose reader has gone ends by SIGPIPE, which pipefail takes for a failure.
journal() { journalctl --no-pager -o cat -u credential-broker; }
fail() { printf 'FAIL: %s\n' "$*"; journal | tail -n 20; exit 1; }
show() { systemctl show --property="$1" --value credential-broker.service; }
get() { credential-broker get registry.example/app >/dev/null || fail 'no credentials'; }
ended() { # how
  systemctl stop credential-broker.socket credential-broker.service
  [ "$(show Result) $(show ActiveState)" = 'success inactive' ] || fail "$1, the agent ended with $(show Result) and is $(show ActiveState)"
  grep -q 'the agent ends.*it was told to' <<<"$(journal)" || fail "$1, the agent did not end in order"
  printf 'ends in order, %s\n' "$1"
}

dpkg -i /one.deb
systemd-analyze verify credential-broker.service credential-broker.socket || fail 'systemd finds fault with the units'
# 3.8: docs/packages.md says it, and the service's comment why it is no less.
systemd-analyze security --no-pager --threshold=38 credential-broker.service >/exposure || fail "the service is more exposed than it was: $(tail -n 1 /exposure)"
tail -n 1 /exposure
systemctl start credential-broker.service
[ "$(show ActiveState)" = inactive ] || fail 'the agent runs without a configuration'
printf '{"auths":{"registry.example":{"auth":"cm9ib3Q6YS1zZWNyZXQ="}}}' >/etc/credential-broker/docker.json
chown nobody /etc/credential-broker/docker.json && chmod 600 /etc/credential-broker/docker.json
cat >/etc/credential-broker/config.yaml <<'Y'
apiVersion: credential-broker.io/v1alpha1
kind: BrokerConfig
agent: {socket: /run/credential-broker/agent.sock}
providers:
- {name: node-files, backend: dockerconfig, matchImages: [registry.example], user: nobody, defaultCacheDuration: 10m, config: {file: /etc/credential-broker/docker.json}}
Y
systemctl enable credential-broker.socket credential-broker.service
systemctl start credential-broker.socket
get # and the socket starts the service
[ "$(show ActiveState)" = active ] || fail 'the socket did not start the agent'
grep -q '^Seccomp:[[:space:]]*2' "/proc/$(show MainPID)/status" || fail 'no system call is filtered'
if grep -q 'memory is not locked' <<<"$(journal)"; then
  ((0x$(awk '$1 == "CapBnd:" { print $2 }' /proc/1/status) >> 14 & 1)) && fail 'the agent could lock its memory, and does not'
  echo 'NOT RUN: memory that is locked under the unit: nobody may lock any here'
fi
swap=/sys/fs/cgroup$(show ControlGroup)/memory.swap.max
if [ -e "$swap" ]; then
  [ "$(cat "$swap")" = 0 ] || fail "MemorySwapMax= is $(cat "$swap")"
else
  echo 'NOT RUN: MemorySwapMax=: the control groups here are not of version 2, or count no swap'
fi
pid=$(credential-broker status | awk '$1 == "node-files" && $3 == "pid" { print $4 }')
[ "$(stat -c %U "/proc/$pid")" = nobody ] || fail 'the backend does not run as nobody'
backends=$(credential-broker backends)
for backend in acr ecr exec gar vault; do
  grep -q "^$backend " <<<"$backends" || fail "credential-backend-$backend does not start"
done
ended 'as it was started'

systemctl start credential-broker.socket credential-broker.service
get
before=$(show MainPID)
dpkg -i /next.deb
for _ in $(seq 600); do
  if [ "$(show MainPID)" != "$before" ]; then break; fi
  get
  sleep 0.1
done
[ "$(show MainPID)" != "$before" ] || fail 'the agent was not succeeded'
grep -q '^agent 999' <<<"$(credential-broker status)" || fail 'the successor is not of the new version'
get
ended 'as a successor'

vault=()
if [ -e /opt/vault ]; then vault=(-vault /opt/vault); fi
/opt/providers/providers "${vault[@]}" || fail 'a backend does not do its job under the unit'

systemctl start credential-broker.socket credential-broker.service
dpkg -r credential-broker
[ "$(show ActiveState)" != failed ] || fail 'the removal left the unit failed'
[ -e /etc/credential-broker/config.yaml ] || fail "the removal took the operator's configuration"
echo 'all of the units came off'
