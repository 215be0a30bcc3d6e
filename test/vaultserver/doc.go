// Package vaultserver runs a real Vault server on loopback for tests: unsealed, with storage in memory, a TLS listener by a private CA, and all that it needs of others (an API server that reviews
// tokens, a RabbitMQ that keeps users, the fake cloud) beside it. It knows nothing of the product, and the product never imports it.
//
//	s := vaultserver.New(t, vaultserver.Options{Cloud: c})
//	s.KV2("secret")
//	s.Put("secret", "registries/harbor.example", map[string]any{"username": "robot", "password": "…"})
//	s.Policy("puller", `path "secret/data/registries/*" { capabilities = ["read"] }`)
//	roleID, secretID := s.AppRole("approle", "puller", []string{"puller"}, nil)
//	f := s.Front() // in between: notes each request, and spoils those that it is told to
//	…
//
// With Options.Standby there is a second server beside it. What it cannot be is Vault Enterprise: namespaces, performance standbys and index headers are for fronts to play.
//
// The server is built once on a machine, which takes about ten minutes and says so; `make vault-server` does it beforehand. Its version is pinned by the module below server/.
package vaultserver
