//go:build unix

package webidentity

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
)

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExecutable(t *testing.T) {
	t.Setenv("LEAKED", canary)
	good := jwt(nil)
	tests := []struct {
		name   string
		script string
		c      Executable // Command is filled in
		want   *failure
	}{
		{name: "a token", script: "echo " + good},
		{name: "in JSON", script: `printf '{"data":{"id_token":"%s"}}' ` + good, c: Executable{TokenField: "data.id_token"}},
		{name: "arguments and environment", script: `[ "$1" = "a b" ] && [ "$SECRET" = x ] && echo ` + good, c: Executable{Args: []string{"a b"}, Env: map[string]backends.Secret{"SECRET": "x"}}},
		{name: "no other environment", script: `[ -z "$LEAKED$HOME" ] && [ -z "$CREDENTIAL_BROKER_GUARDIAN" ] && echo ` + good},
		{name: "standard error is nobody's concern", script: "echo x >&2; echo " + good},

		{name: "nothing", script: ":", want: unavailable("it is empty")},
		{name: "no token", script: "echo " + canary, want: misconfigured("webIdentity.executable", "no JWT")},
		{name: "another audience", script: "echo " + jwt(map[string]any{"aud": "x"}), want: misconfigured("webIdentity.executable", `"x" and not for`)},
		{name: "no JSON", script: "echo " + good, c: Executable{TokenField: "token"}, want: misconfigured("webIdentity.executable.tokenField", `no JSON with a string in field "token"`)},
		{name: "JSON without asking", script: `echo '{"token":"` + canary + `"}'`, want: misconfigured("webIdentity.executable", "no JWT")},
		{name: "failure", script: "exit 3", want: unavailable("exit status 3")},
		{name: "a token and failure", script: "echo " + good + "; exit 1", want: unavailable("exit status 1")},
		{
			name: "the reason, without what is secret", c: Executable{Env: map[string]backends.Secret{"KEY": canary}},
			script: `echo '{"token":"` + good + `"}'; echo one >&2; echo "key $KEY was refused" >&2; echo "+ curl -H 'Bearer ` + jwt(map[string]any{"x": 1}) + `'" >&2; echo "` + good + `" >&2; echo two >&2; exit 1`,
			want:   unavailable("exit status 1; the end of its standard error: key [redacted] was refused; + curl -H 'Bearer [redacted]", "'; [redacted]; two"),
		},
		{name: "too much", script: "yes " + canary, want: unavailable("too much on standard output")},
		{name: "too slow", script: "sleep 60", c: Executable{Timeout: 200 * time.Millisecond}, want: unavailable("did not end in time")},
		{
			name: "another digest", script: "echo " + good, c: Executable{SHA256: []string{strings.Repeat("0", 64)}},
			want: misconfigured("webIdentity.executable.command", "SHA-256 digest"),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.c.Command = script(t, tt.script)
			s := source(t, Config{Executable: &tt.c}, testWorld())
			token, err := s.Token(t.Context())
			check(t, s, token, err, tt.want)
			if tt.want == nil && string(token.Value) != good {
				t.Error("that is another token")
			}
		})
	}
}

func TestExecutableIsChecked(t *testing.T) {
	path := script(t, "echo "+jwt(nil))
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	c := Config{Executable: &Executable{Command: path, SHA256: []string{hex.EncodeToString(sum[:])}}}
	s := source(t, c, testWorld())
	if _, err := s.Token(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	token, err := s.Token(t.Context())
	check(t, s, token, err, misconfigured("webIdentity.executable.command", "not safe to use", "chmod"))
	if err := c.Validate("webIdentity", testSources); err == nil || !strings.Contains(err.Error(), "webIdentity.executable.command: ") {
		t.Errorf("Validate says %v", err)
	}
}

func TestExecutableGivenUp(t *testing.T) {
	s := source(t, Config{Executable: &Executable{Command: script(t, "sleep 60")}}, testWorld())
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	token, err := s.Token(ctx)
	check(t, s, token, err, unavailable("no answer within the time that there is"))
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	token, err = s.Token(ctx)
	check(t, s, token, err, unavailable("given up"))
}
