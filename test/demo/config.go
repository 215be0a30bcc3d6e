package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// The providers of the demo's configuration, in order.
const (
	nodeFiles = "node-files"
	mine      = "mine"
	legacy    = "legacy"
	elsewhere = "elsewhere"
)

// outdated is what the provider "mine" has as its password: the registry has long had another.
const outdated = "last-year"

// configuration: %[1]s is the demo's directory, %[2]s the registry.
const configuration = `apiVersion: credential-broker.io/v1alpha1
kind: BrokerConfig
providers:
- name: node-files          # a docker configuration that somebody put on the node
  backend: dockerconfig
  matchImages: ["%[2]s"]
  defaultCacheDuration: 10m
  config: {file: %[1]s/docker.json}
- name: mine                # written in ten minutes: examples/backend-go
  backend: userfile
  matchImages: ["%[2]s"]
  defaultCacheDuration: 10m
  config: {files: {"%[2]s": %[1]s/mine}}
- name: legacy              # a credential provider that was once an entry of the kubelet's
  backend: exec
  matchImages: ["%[2]s/team"]
  config: {command: %[1]s/legacy-provider}
- name: elsewhere           # for another registry
  backend: dockerconfig
  matchImages: ["registry.example:5000"]
  config: {file: %[1]s/docker.json}
`

// legacyProvider is an exec plugin of the kubelet's in a few lines of shell. While a file "hang" lies beside it, it never answers.
const legacyProvider = `#!/bin/sh
cd "$(dirname "$0")"
cat >request.json
if [ -e hang ]; then
  echo $$ >hanging.new && mv hanging.new hanging
  exec sleep 600
fi
cat <<EOF
{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse", "cacheKeyType": "Registry", "cacheDuration": "5m",
 "auth": {"%[1]s/team": {"username": "robot", "password": "%[2]s"}}}
EOF
`

// configure writes the broker's configuration and what its providers need.
func (d *demo) configure() error {
	docker, err := json.Marshal(map[string]any{"auths": map[string]any{
		d.registry.host: map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("node:" + d.registry.logins["node"]))},
	}})
	if err != nil {
		return err
	}
	for _, file := range []struct {
		name, content string
		mode          os.FileMode
	}{
		{"config.yaml", fmt.Sprintf(configuration, d.dir, d.registry.host), 0o600},
		{"docker.json", string(docker), 0o600},
		{"mine", "example:" + outdated, 0o600},
		{"legacy-provider", fmt.Sprintf(legacyProvider, d.registry.host, d.registry.logins["robot"]), 0o700},
	} {
		if err := os.WriteFile(filepath.Join(d.dir, file.name), []byte(file.content), file.mode); err != nil {
			return err
		}
	}
	return nil
}
