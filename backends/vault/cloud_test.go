package vault

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// planted is in what no message may have.
const planted = "c4n4ry-c4n4ry-c4n4ry"

// aCloud is a fake cloud, in an environment that has nothing else of what clouds' libraries heed.
func aCloud(t *testing.T) *cloud.Cloud {
	t.Helper()
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "AWS_") || strings.HasPrefix(name, "AZURE_") || strings.HasPrefix(name, "GCE_") || strings.HasPrefix(name, "GOOGLE_") {
			t.Setenv(name, "") // so that it comes back
			_ = os.Unsetenv(name)
		}
	}
	t.Setenv("HOME", t.TempDir())
	return cloud.New(t)
}

func inEnv(t *testing.T, env ...string) {
	t.Helper()
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
}

func inFile(t *testing.T, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// no is what a login that fails has to say.
type no struct {
	kind  backends.Kind
	field string
	says  []string
}

// judge compares: the kind, the field, every text, and that nothing secret is told, neither by the error nor by what was logged meanwhile.
func (n no) judge(t *testing.T, parameters map[string]any, err error, logged string, secrets ...string) {
	t.Helper()
	e, ok := errors.AsType[*backends.Error](err)
	if !ok || e.Kind != n.kind || e.Field != n.field {
		t.Errorf("%#v\nwant kind %d and field %q", err, n.kind, n.field)
	}
	if len(parameters) > 0 {
		t.Error("there are parameters with the error")
	}
	text := fmt.Sprintf("%v %+v", err, err)
	for _, says := range n.says {
		if !strings.Contains(text, says) {
			t.Errorf("%v\ndoes not say %q", err, says)
		}
	}
	silent(t, text+logged, secrets...)
}

// silent looks for secrets.
func silent(t *testing.T, text string, secrets ...string) {
	t.Helper()
	for _, secret := range append(secrets, planted, "ya29.", "eyJ", "PRIVATE KEY") {
		if secret != "" && strings.Contains(text, secret) {
			t.Errorf("it tells a secret: %s", text)
		}
	}
}

// heard is all that is logged from now on.
func heard(t *testing.T) *bytes.Buffer {
	t.Helper()
	was := slog.Default()
	t.Cleanup(func() { slog.SetDefault(was) })
	var b bytes.Buffer
	slog.SetDefault(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug})))
	return &b
}

// problemsWith are what a validation finds, by field.
func problemsWith(t *testing.T, validate func(field string, p *problems)) map[string]string {
	t.Helper()
	var p problems
	validate("auth.x", &p)
	found := map[string]string{}
	for _, err := range p.Problems {
		e, ok := errors.AsType[*backends.Error](err)
		if !ok || e.Kind != backends.KindMisconfigured || found[e.Field] != "" {
			t.Errorf("another kind, or a second one of the field: %#v", err)
			continue
		}
		found[e.Field] = e.Err.Error()
	}
	return found
}

// finds compares them with those that there have to be.
func finds(t *testing.T, found, want map[string]string) {
	t.Helper()
	for field, says := range want {
		if !strings.Contains(found[field], says) {
			t.Errorf("of %s: %q, want %q", field, found[field], says)
		}
	}
	for field, text := range found {
		if want[field] == "" {
			t.Errorf("of %s: %q", field, text)
		}
	}
}

// TestNoPullCarriesASDK: the package, and so the backend that each pull starts, is without the clouds' own. Its tests have AWS's by way of the fake cloud, or this one would see nothing.
func TestNoPullCarriesASDK(t *testing.T) {
	for _, tt := range []struct {
		args []string
		sdk  bool
	}{{[]string{"list", "-deps", "."}, false}, {[]string{"list", "-deps", "-test", "."}, true}} {
		out, err := exec.Command("go", tt.args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for name := range strings.FieldsSeq(string(out)) {
			if slices.ContainsFunc([]string{"github.com/aws/", "cloud.google.com/", "google.golang.org/api/", "golang.org/x/oauth2", "github.com/Azure/", "github.com/AzureAD/"}, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
				got = append(got, name)
			}
		}
		if (len(got) > 0) != tt.sdk {
			t.Errorf("go %s: %q", strings.Join(tt.args, " "), got)
		}
	}
}

// besideThis builds the program that signs for AWS where the backend looks for it, until the test's end.
func besideThis(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(filepath.Dir(self), "aws-identity-token")
	if runtime.GOOS == "windows" {
		program += ".exe"
	}
	t.Cleanup(func() { _ = os.Remove(program) })
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/aws-identity-token").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
