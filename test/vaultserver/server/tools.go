//go:build tools

// Package server is a module of its own that pins the Vault server which test/vaultserver builds and runs, so that the server's six hundred dependencies stay out of the product's go.mod. Nothing is
// written here: `make vault-server` builds github.com/hashicorp/vault in this directory.
//
// Vault's repository replaces github.com/hashicorp/vault/sdk with its own ./sdk, and a replacement counts for nobody but the module that makes it. So sdk is required here at the pseudo-version of the
// very commit that v1.19.5 is: no tagged sdk has all that this server calls. Later servers (1.20.4, 1.21.4) build with no sdk that is published, and keep this one where it is.
package server

import _ "github.com/hashicorp/vault"
