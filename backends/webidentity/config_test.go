package webidentity

import (
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
)

func TestValidate(t *testing.T) {
	root := "/"
	if runtime.GOOS == "windows" {
		root = `C:\`
	}
	const uuid = "fb60f99c-7a34-4190-8149-302f77469936"
	tests := []struct {
		name string
		c    Config
		want map[string]string // field: what is said of it
	}{
		{"a file", Config{File: &File{Path: root + "token"}}, nil},
		{"Google without settings", Config{GoogleMetadata: &GoogleMetadata{}}, nil},
		{"Google", Config{Audience: "a", GoogleMetadata: &GoogleMetadata{ServiceAccount: "a@b.iam.gserviceaccount.com", Endpoint: "http://metadata.google.internal:80"}}, nil},
		{"Azure without settings", Config{AzureManagedIdentity: &AzureManagedIdentity{}}, nil},
		{"Azure", Config{AzureManagedIdentity: &AzureManagedIdentity{ClientID: uuid}}, nil},
		{"Azure by resource", Config{AzureManagedIdentity: &AzureManagedIdentity{ResourceID: "/subscriptions/x/y"}}, nil},
		{"SPIFFE without settings", Config{SPIFFE: &SPIFFE{}}, nil},
		{"SPIFFE", Config{SPIFFE: &SPIFFE{Socket: "unix:///run/a.sock", ID: "spiffe://example.org/ns/a"}}, nil},
		{"SPIFFE by path", Config{SPIFFE: &SPIFFE{Socket: root + "a.sock"}}, nil},
		{"SPIFFE by address", Config{SPIFFE: &SPIFFE{Socket: "tcp://127.0.0.1:8000"}}, nil},
		{"a URL", Config{URL: &URL{URL: "https://a.example/b?c=d", Headers: map[string]backends.Secret{"Authorization": "Bearer x"}, CAFile: root + "ca.pem", TokenField: "data.token"}}, nil},
		{"a URL on this machine", Config{URL: &URL{URL: "http://[::1]:80/b"}}, nil},
		{"a URL on this link", Config{URL: &URL{URL: "http://169.254.169.254/b"}}, nil},
		{"AWS without settings", Config{AWS: &AWS{}}, nil},
		{"AWS", Config{Audience: strings.Repeat("a", 1000), AWS: &AWS{Region: "us-gov-west-1", SigningAlgorithm: ES384, Duration: time.Hour}}, nil},
		{"AWS, for a minute", Config{AWS: &AWS{SigningAlgorithm: RS256, Duration: time.Minute}}, nil},

		{"none", Config{}, map[string]string{"w": "set one of aws, file"}},
		{"an audience alone", Config{Audience: "a"}, map[string]string{"w": "names no source"}},
		{"two", Config{File: &File{Path: root + "a"}, SPIFFE: &SPIFFE{}}, map[string]string{"w": "2 sources, file, spiffe"}},
		{"an audience of two words", Config{Audience: "a b", SPIFFE: &SPIFFE{}}, map[string]string{"w.audience": "printable"}},
		{"a file without a path", Config{File: &File{}}, map[string]string{"w.file.path": "want the absolute path"}},
		{"a relative path", Config{File: &File{Path: "a"}}, map[string]string{"w.file.path": `absolute path, got "a"`}},
		{
			"Google, wrong",
			Config{GoogleMetadata: &GoogleMetadata{ServiceAccount: "../x", Endpoint: "metadata.google.internal"}},
			map[string]string{"w.googleMetadata.serviceAccount": "email", "w.googleMetadata.endpoint": "want a URL"},
		},
		{
			"Azure, wrong",
			Config{AzureManagedIdentity: &AzureManagedIdentity{ClientID: "x", ResourceID: "x", ObjectID: uuid, Endpoint: "http://u:p@h/"}},
			map[string]string{
				"w.azureManagedIdentity.clientID": "UUID", "w.azureManagedIdentity.resourceID": "resource id", "w.azureManagedIdentity": "keep one",
				"w.azureManagedIdentity.endpoint": "without user",
			},
		},
		{
			"SPIFFE, wrong",
			Config{SPIFFE: &SPIFFE{Socket: "run/a.sock", ID: "example.org/a"}},
			map[string]string{"w.spiffe.socket": "want the address", "w.spiffe.id": "spiffe://example.org/node"},
		},
		{"Google, another format", Config{GoogleMetadata: &GoogleMetadata{Format: "Full"}}, map[string]string{"w.googleMetadata.format": `["standard" "full"]`}},
		{"SPIFFE elsewhere", Config{SPIFFE: &SPIFFE{Socket: "tcp://192.0.2.1:80"}}, map[string]string{"w.spiffe.socket": "its own machine"}},
		{"SPIFFE by name", Config{SPIFFE: &SPIFFE{Socket: "tcp://localhost:80"}}, map[string]string{"w.spiffe.socket": "want the address"}},
		{"SPIFFE on a host's socket", Config{SPIFFE: &SPIFFE{Socket: "unix://host/run/a.sock"}}, map[string]string{"w.spiffe.socket": "want the address"}},
		{"SPIFFE, an id without a domain", Config{SPIFFE: &SPIFFE{ID: "spiffe:///a"}}, map[string]string{"w.spiffe.id": "want"}},
		{"SPIFFE, an id that ends in a slash", Config{SPIFFE: &SPIFFE{ID: "spiffe://a/b/"}}, map[string]string{"w.spiffe.id": "want"}},
		{"SPIFFE, an id that goes up", Config{SPIFFE: &SPIFFE{ID: "spiffe://a/../b"}}, map[string]string{"w.spiffe.id": "want"}},
		{"SPIFFE, an id in capitals", Config{SPIFFE: &SPIFFE{ID: "spiffe://A/b"}}, map[string]string{"w.spiffe.id": "want"}},
		{
			"a program, wrong",
			Config{Executable: &Executable{
				Command: "token", Args: []string{"a\x00"}, Env: map[string]backends.Secret{"A=B": canary, "C": canary + "\x00"}, SHA256: []string{"00"}, Timeout: -1, TokenField: "a..b",
			}},
			map[string]string{
				"w.executable.command": "absolute", "w.executable.args[0]": "zero byte", "w.executable.env": `"A=B"`, "w.executable.env.C": "zero byte", "w.executable.sha256[0]": "64",
				"w.executable.timeout": "10s", "w.executable.tokenField": "data.token",
			},
		},
		{"a program that is not named", Config{Executable: &Executable{}}, map[string]string{"w.executable.command": "want"}},
		{"a program that is not there", Config{Executable: &Executable{Command: root + "no/such/program"}}, map[string]string{"w.executable.command": "no"}},
		{
			"a URL, wrong",
			Config{URL: &URL{URL: "https://u:" + canary + "@a.example/", Headers: map[string]backends.Secret{"Host": "b", "a b": canary, "X": canary + "\n"}, CAFile: "ca.pem", TokenField: "."}},
			map[string]string{
				"w.url.url": "Authorization", "w.url.headers.Host": "not for settings", "w.url.headers": `"a b"`, "w.url.headers.X": "line break", "w.url.caFile": "absolute",
				"w.url.tokenField": "data.token",
			},
		},
		{"a URL without a host", Config{URL: &URL{URL: "https:///" + canary}}, map[string]string{"w.url.url": "want a URL"}},
		{"a URL that is none", Config{URL: &URL{URL: "https://%zz/" + canary}}, map[string]string{"w.url.url": "want a URL"}},
		{"a URL with a fragment", Config{URL: &URL{URL: "https://a.example/#x"}}, map[string]string{"w.url.url": "fragment"}},
		{"plain HTTP", Config{URL: &URL{URL: "http://192.0.2.1/", CAFile: root + "a"}}, map[string]string{"w.url.url": "want https", "w.url.caFile": "of no use"}},
		{
			"AWS, wrong",
			Config{Audience: strings.Repeat("a", 1001), AWS: &AWS{Region: "eu-west-1.", SigningAlgorithm: "rs256", Duration: time.Hour + 1}},
			map[string]string{"w.audience": "1000", "w.aws.region": "eu-west-1, got", "w.aws.signingAlgorithm": `["RS256" "ES384"]`, "w.aws.duration": "1m to 1h"},
		},
		{"AWS, everywhere", Config{AWS: &AWS{Region: "aws-global", Duration: time.Hour + time.Second}}, map[string]string{"w.aws.region": "want a region", "w.aws.duration": "1h0m1s"}},
		{"AWS, too short", Config{AWS: &AWS{Duration: 59 * time.Second}}, map[string]string{"w.aws.duration": "1m"}},
		{"AWS, no whole seconds", Config{AWS: &AWS{Duration: time.Minute + time.Millisecond}}, map[string]string{"w.aws.duration": "whole seconds"}},
		{"AWS, with another", Config{AWS: &AWS{}, SPIFFE: &SPIFFE{}}, map[string]string{"w": "2 sources, spiffe, aws"}},
		{"plain HTTP to a name", Config{URL: &URL{URL: "http://a.example/"}}, map[string]string{"w.url.url": "want https"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.c.Validate("w", testSources)
			got := map[string]string{}
			for _, e := range problemsOf(err) {
				kind, field := kindOf(e)
				if kind != backends.KindMisconfigured || got[field] != "" {
					t.Errorf("a problem of another kind, or a second one of %s: %v", field, e)
				}
				got[field] = e.Error()
				if says, ok := tt.want[field]; !ok || !strings.Contains(e.Error(), says) {
					t.Errorf("%v\nwant %q", e, says)
				}
				if strings.Contains(e.Error(), canary) {
					t.Errorf("shows a secret: %v", e)
				}
			}
			for field := range tt.want {
				if got[field] == "" {
					t.Errorf("nothing is said of %s: %v", field, err)
				}
			}
		})
	}
}

func problemsOf(err error) []error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		return joined.Unwrap()
	}
	if err != nil {
		return []error{err}
	}
	return nil
}

func TestIsZero(t *testing.T) {
	if !(Config{}).IsZero() || (Config{Audience: "a"}).IsZero() || (Config{GoogleMetadata: &GoogleMetadata{}}).IsZero() {
		t.Error("only a Config without anything is zero")
	}
}
