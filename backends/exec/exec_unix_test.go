//go:build unix

package exec

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/backends"
)

func kindOf(err error) (backends.Kind, string) {
	if e, ok := errors.AsType[*backends.Error](err); ok {
		return e.Kind, e.Field
	}
	return backends.KindUnavailable, ""
}

const good = `cat >/dev/null; echo '{` + head + `,"cacheKeyType":"Registry","cacheDuration":"1h","auth":{"r.example":{"username":"u","password":"p4ssw0rd"}}}'`

func TestCredentials(t *testing.T) {
	hour := time.Hour
	tests := []struct {
		name   string
		script string
		cfg    Config // Command is filled in
		want   backends.Response
		fails  string // what the error says; "": none
	}{
		{
			name: "a provider's answer", script: good,
			want: backends.Response{Scope: backends.ScopeRegistry, CacheDuration: &hour, Credentials: []backends.Credential{{Key: "r.example", Username: "u", Password: "p4ssw0rd"}}},
		},
		{
			name: "arguments and version are passed on", cfg: Config{Args: []string{"get", "a b"}, APIVersion: v1beta1},
			script: `[ "$1" = get ] && [ "$2" = "a b" ] && grep -q '"apiVersion":"credentialprovider.kubelet.k8s.io/v1beta1"' || exit 9
				echo '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1beta1","kind":"CredentialProviderResponse","cacheKeyType":"Image"}'`,
		},
		{name: "an answer of another version", script: `echo '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1beta1"}'`, fails: "v1 was asked for: set apiVersion"},
		{
			name: "an exit status with the last lines of standard error", script: `for i in 1 2 3 4 5 6 7 8 9 10; do echo "line $i" >&2; done; exit 3`,
			fails: "exit status 3; the end of its standard error: line 3; line 4; line 5; line 6; line 7; line 8; line 9; line 10",
		},
		{name: "a signal", script: `kill -9 $$`, fails: "ended by signal 9"},
		{name: "nothing printed", script: `cat >/dev/null`, fails: "printed nothing"},
		{name: "no response", script: `echo hello`, fails: "not JSON"},
		{name: "a valid answer and a failure are a failure", script: good + `; exit 1`, fails: "exit status 1"},
		{name: "too long an answer", script: `yes`, fails: "too much"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Command = provider(t, tt.script)
			p, err := New(t.Context(), tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			got, err := p.Credentials(t.Context(), backends.Request{Image: "r.example/team/app"})
			if tt.fails != "" {
				if kind, _ := kindOf(err); err == nil || kind != backends.KindUnavailable || !strings.Contains(err.Error(), tt.fails) {
					t.Fatalf("got %v, want it to say %q", err, tt.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.want.Credentials == nil {
				tt.want = backends.Response{}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAProviderThatHangsIsKilledInTime(t *testing.T) {
	p, err := New(t.Context(), Config{Command: provider(t, `echo started >&2; trap '' TERM; while :; do sleep 60; done`)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err = p.Credentials(ctx, backends.Request{Image: "r.example/a"})
	if kind, _ := kindOf(err); err == nil || kind != backends.KindUnavailable || !strings.Contains(err.Error(), "did not answer in time") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestTheProviderSeesTheBackendsEnvironmentOnly(t *testing.T) {
	t.Setenv("SOME_SETTING", "some value")
	p, err := New(t.Context(), Config{Command: provider(t, `env >&2; exit 1`)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Credentials(t.Context(), backends.Request{Image: "r.example/a"})
	if err == nil || strings.Contains(err.Error(), "GUARDIAN") {
		t.Errorf("got %v", err)
	}
	if !slices.Contains(p.env, "SOME_SETTING=some value") {
		t.Error("the environment is not the backend's")
	}
}

func TestNoSecretInAnError(t *testing.T) {
	const password, token = `cAnArY"-0123456789/+`, "eyTOKENcAnArY.abc.def"
	quoted := `cAnArY\"-0123456789/+`
	header := base64.StdEncoding.EncodeToString([]byte("u:" + password))
	answer := `{` + head + `,"cacheKeyType":"Image","auth":{"r.example":{"username":"u","password":"` + quoted + `"}}}`
	for name, script := range map[string]string{
		"a valid answer":             `cat <<'X'` + "\n" + answer + "\nX\n",
		"an answer that is cut":      `cat <<'X'` + "\n" + answer[:len(answer)-3] + "\nX\n",
		"an answer with a new field": `cat <<'X'` + "\n" + strings.Replace(answer, `"auth"`, `"new":1,"auth"`, 1) + "\nX\n",
		"plain text":                 `cat <<'X'` + "\npassword " + password + " " + header + "\nX\n",
	} {
		t.Run(name, func(t *testing.T) {
			p, err := New(t.Context(), Config{Command: provider(t, "cat >&2\n"+script+`cat >&2 <<'X'`+"\nlogin u "+password+" refused\n"+quoted+"\nAuthorization: Basic "+header+"\nthe reason\nX\nexit 1")})
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Credentials(t.Context(), backends.Request{Image: "r.example/a", Token: token})
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), "the reason") {
				t.Errorf("%v does not give the reason", err)
			}
			for _, secret := range []string{"cAnArY", "0123456789", token} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q is in the error: %v", secret, err)
				}
			}
			if strings.Contains(err.Error(), header[:12]) {
				t.Errorf("the header is in the error: %v", err)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	script := provider(t, good)
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := provider(t, good)
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		cfg    Config
		fields []string
	}{
		"no command":                      {Config{}, []string{"command"}},
		"a relative command":              {Config{Command: "provider"}, []string{"command"}},
		"a command that does not exist":   {Config{Command: "/nowhere/provider"}, []string{"command"}},
		"a command not to be executed":    {Config{Command: plain}, []string{"command"}},
		"a command others can write":      {Config{Command: open}, []string{"command"}},
		"all problems at once":            {Config{Command: "x", Args: []string{"", "\x00"}, SHA256: []string{strings.Repeat("0", 64), "xyz"}, APIVersion: "v1"}, []string{"command", "args[1]", "sha256[1]", "apiVersion"}},
		"a version, arguments and digest": {Config{Command: script, Args: []string{"a"}, SHA256: []string{strings.Repeat("A", 64)}, APIVersion: v1alpha1}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(t.Context(), tt.cfg)
			var fields []string
			if joined, ok := err.(interface{ Unwrap() []error }); ok {
				for _, e := range joined.Unwrap() {
					kind, field := kindOf(e)
					if kind != backends.KindMisconfigured {
						t.Errorf("%v is of kind %v", e, kind)
					}
					fields = append(fields, field)
				}
			}
			if !slices.Equal(fields, tt.fields) {
				t.Errorf("got %v about %q, want %q", err, fields, tt.fields)
			}
		})
	}
}

func TestTheCommandIsJudgedAtEachStart(t *testing.T) {
	script := provider(t, good)
	p, err := New(t.Context(), Config{Command: script, SHA256: []string{strings.Repeat("0", 64)}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Credentials(t.Context(), backends.Request{Image: "r.example/a"})
	if kind, field := kindOf(err); kind != backends.KindMisconfigured || field != "command" || !strings.Contains(err.Error(), "digest") {
		t.Errorf("a wrong digest: %v", err)
	}
	if p.Check(t.Context(), backends.Request{}) == nil {
		t.Error("Check takes a wrong digest")
	}
	if p, err = New(t.Context(), Config{Command: script}); err != nil {
		t.Fatal(err)
	}
	if err := p.Check(t.Context(), backends.Request{}); err != nil {
		t.Error(err)
	}
	if err := os.Remove(script); err != nil {
		t.Fatal(err)
	}
	_, err = p.Credentials(t.Context(), backends.Request{Image: "r.example/a"})
	if kind, field := kindOf(err); kind != backends.KindMisconfigured || field != "command" {
		t.Errorf("a command that is gone: %v", err)
	}
}
