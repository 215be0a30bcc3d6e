package backendtest_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/backendtest"
)

// The test program is also the backend that is judged.
const asBackend = "TEST_BACKEND"

func TestMain(m *testing.M) {
	if mode := os.Getenv(asBackend); mode != "" {
		backends.Serve("judged", "1.0.0", func(context.Context, settings) (backends.Backend, error) { return judged(mode), nil })
	}
	os.Exit(m.Run())
}

type settings struct {
	Retries int `json:"retries"`
}

type judged string

func (mode judged) Credentials(_ context.Context, r backends.Request) (backends.Response, error) {
	if r.Image.Host() != "registry.example" {
		return backends.Response{}, nil
	}
	key := r.Image.Host()
	if mode == "bad" {
		key = "elsewhere.example"
	}
	return backends.Response{Credentials: []backends.Credential{{Key: key, Username: "puller", Password: "open-sesame-2718"}}}, nil
}

func (judged) Check(context.Context, backends.Request) error { return nil }

func options(t *testing.T, mode string) backendtest.Options {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	executable := filepath.Join(t.TempDir(), "credential-backend-judged")
	if err := os.Symlink(self, executable); err != nil {
		t.Fatal(err)
	}
	return backendtest.Options{Executable: executable, Config: settings{Retries: 3}, Image: "registry.example/app", Env: []string{asBackend + "=" + mode, noExitSleep}}
}

func TestAGoodBackendPasses(t *testing.T) { backendtest.Run(t, options(t, "good")) }

// judgeBad makes TestABadBackend fail, as it would in its author's hands.
const judgeBad = "TEST_JUDGE_BAD"

func TestABadBackend(t *testing.T) {
	if os.Getenv(judgeBad) != "" {
		backendtest.Run(t, options(t, "bad"))
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestABadBackend$", "-test.v")
	cmd.Env = append(os.Environ(), judgeBad+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("go test passes")
	}
	for _, want := range []string{
		"--- FAIL: TestABadBackend/keys", "--- PASS: TestABadBackend/describe",
		"Every auth key parses", `seen: the key of credentials[0], "elsewhere.example", does not match registry.example/app`, "mend: give host[:port]",
		": 29 rules passed, 1 failed, 3 not run",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("go test does not say %q", want)
		}
	}
	if t.Failed() {
		t.Logf("it says\n%s", out)
	}
}

// noExitSleep keeps a program that was built with the race detector from sleeping for a second before it ends.
const noExitSleep = "GORACE=atexit_sleep_ms=0"
