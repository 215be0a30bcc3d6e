package caller

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/broker/config"
)

func TestSecretsAreKnownByTheNamesOfSettingsAndVariables(t *testing.T) {
	got := secretsOf(&config.Provider{
		Env:        []config.EnvVar{{Name: "VAULT_TOKEN", Value: "set-token"}, {Name: "AWS_WEB_IDENTITY_TOKEN_FILE", Value: "/var/run/token"}, {Name: "PLAIN", Value: "set-plain"}, {Name: "GOOGLE_APPLICATION_CREDENTIALS", Value: "/etc/google.json"}},
		InheritEnv: []string{"AWS_*", "IDENTITY_*"},
		Config: []byte(`{"password":"a-password","url":"https://registry.example","passwordFile":"/etc/password","passwordField":"password-field","auth":{"secretID":["an-id","another-id"],"role":"a-role"},
			"tokenProxy":"https://10.0.0.1","tokens":{"one":"not-by-its-own-name"},"apiKey":"short","retries":3}`),
	}, []string{"AWS_SECRET_ACCESS_KEY=host-secret", "AWS_REGION=eu-west-1", "OTHER_SECRET=not-inherited", "IDENTITY_HEADER=host-header", "IDENTITY_ENDPOINT=http://127.0.0.1/msi", "IDENTITY_TOKEN_PROXY=https://10.0.0.1", "PATH=/usr/bin"})
	slices.Sort(got)
	// "an-id" and "short" are too short to be taken out of every line.
	if diff := cmp.Diff([]string{"a-password", "another-id", "host-header", "host-secret", "set-token"}, got); diff != "" {
		t.Error(diff)
	}
}
