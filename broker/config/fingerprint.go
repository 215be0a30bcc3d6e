package config

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// Fingerprint is a digest (SHA-256, hexadecimal) of all that a provider's entry says: two providers with the same one are asked in the same way and give the same answers. Where the entry
// stands does not count.
func (p *Provider) Fingerprint() string {
	said := *p
	said.At = ""
	data, err := json.Marshal(said)
	if err != nil {
		panic("config: a provider cannot be written as JSON: " + err.Error()) // Config is valid JSON, and everything else is plain
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
