package webidentity

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// TestAlone: a backend's own names for the settings of a source are those of its errors.
func TestAlone(t *testing.T) {
	c := cloud.New(t)
	google := c.GoogleInstance(cloud.ServiceAccount{Email: "node@test-project.iam.gserviceaccount.com"})
	azure := c.AzureInstance(cloud.ManagedIdentity{System: true})
	azure.AddApplication(cloud.Application{URI: aws})
	held := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(held, []byte(jwt(map[string]any{"aud": aws})), 0o600); err != nil {
		t.Fatal(err)
	}
	f := Fields{Source: "auth.x", Audience: "auth.resource", Elsewhere: "log in by another method"}
	for name, tt := range map[string]struct {
		source func(audience string) Source
		// other is what a token for an audience that is not to be had comes to.
		other *failure
	}{
		"a file": {
			func(audience string) Source { return NewFile(File{Path: held}, audience, f) },
			misconfigured("auth.x.tokenFile", `for audience "`+aws+`" and not for "api://other"`, "or set auth.resource"),
		},
		"Google": {
			func(audience string) Source {
				if audience != aws { // of which it would have a token
					audience = ""
				}
				return NewGoogleMetadata(GoogleMetadata{Endpoint: google.URL()}, audience, f)
			},
			misconfigured("auth.x", "(HTTP status 400): set auth.resource"),
		},
		"Azure": {
			func(audience string) Source {
				return NewAzureManagedIdentity(AzureManagedIdentity{Endpoint: azure.URL()}, audience, f)
			},
			misconfigured("auth.x", "or set auth.resource to one that there is"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := tt.source(aws)
			token, err := s.Token(t.Context())
			check(t, s, token, err, nil)
			s = tt.source("api://other")
			token, err = s.Token(t.Context())
			check(t, s, token, err, tt.other)
		})
	}
	for name, tt := range map[string]struct {
		source Source
		want   *failure
	}{
		"not Google":        {NewGoogleMetadata(GoogleMetadata{Endpoint: azure.URL()}, aws, f), misconfigured("auth.x", "is not it: log in by another method on a machine that is not on Google Cloud")},
		"not Azure":         {NewAzureManagedIdentity(AzureManagedIdentity{Endpoint: google.URL()}, aws, f), misconfigured("auth.x", "is not it: log in by another method on a machine that is not on Azure")},
		"nobody for Google": {NewGoogleMetadata(GoogleMetadata{Endpoint: nobody(t)}, aws, f), unavailable("allowed here? If not, log in by another method")},
		"nobody for Azure":  {NewAzureManagedIdentity(AzureManagedIdentity{Endpoint: nobody(t)}, aws, f), unavailable("allowed here? If not, log in by another method")},
	} {
		t.Run(name, func(t *testing.T) {
			token, err := tt.source.Token(t.Context())
			check(t, tt.source, token, err, tt.want)
		})
	}
}

// TestAt: nor need a Config be at webIdentity.
func TestAt(t *testing.T) {
	from := testSources
	from.At = "auth.webIdentity"
	held := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(held, []byte(jwt(map[string]any{"aud": "api://x"})), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{File: &File{Path: held}}, aws, from)
	if err != nil {
		t.Fatal(err)
	}
	token, err := s.Token(t.Context())
	check(t, s, token, err, misconfigured("auth.webIdentity.file.path", "or set auth.webIdentity.audience"))
	_, err = New(Config{}, aws, from)
	if kind, field := kindOf(err); kind != backends.KindMisconfigured || field != "auth.webIdentity" {
		t.Errorf("%v", err)
	}
}
