// Package vault gives registry credentials that are kept, or made on demand, by HashiCorp Vault or OpenBao.
package vault

import (
	_ "github.com/hashicorp/vault/api"
	_ "github.com/hashicorp/vault/api/auth/approle"
	_ "github.com/hashicorp/vault/api/auth/kubernetes"
)
