package vault

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
)

// atOnce asks for so many images, of a registry each.
func atOnce(t *testing.T, b *Backend, n int) {
	t.Helper()
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() {
			if _, err := b.Credentials(context.WithoutCancel(t.Context()), backends.Request{Image: backends.Image(fmt.Sprintf("registry-%d.example/app", i))}); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
}

// TestOneLookUpForManyAtOnce: whoever waits for the engine to be known has no login for that, so that the lease of all can hang on the first one.
func TestOneLookUpForManyAtOnce(t *testing.T) {
	r := use(t)
	_, lending := r.lending(time.Hour, time.Hour, nil)
	b := r.backend(lending)
	atOnce(t, b, 40)
	if asked, want := r.asked(), []string{"PUT auth/approle/login 200", "GET sys/internal/ui/mounts/mq/creds/pull 200", "GET mq/creds/pull 200", "PUT auth/token/renew-self 200"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
	// Secrets of one engine need one look-up, whatever their paths.
	r.front.Forget()
	r.KV2(r.name("kv"))
	for i := range 20 {
		r.Put(r.name("kv"), fmt.Sprintf("registry-%d.example", i), map[string]any{"username": "robot", "password": "p"})
	}
	b = r.backend(Config{Auth: r.appRole(nil, r.reads(r.name("kv")+"/data/*")), Secrets: []Secret{{Path: r.name("kv") + "/{host}"}}})
	atOnce(t, b, 20)
	if asked := r.asked(); len(asked) != 1+1+20 {
		t.Errorf("asked %q, want one login, one look-up and 20 reads", asked)
	}
}

// TestPrepare asks nobody, and what fails there is not the last word.
func TestPrepare(t *testing.T) {
	r := use(t)
	path, auth := r.kv()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	b := r.backend(Config{Auth: auth, CAFile: ca, Secrets: []Secret{{Path: path}}})
	b.server.prepare()
	content, err := os.ReadFile(r.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca, content, 0o600); err != nil {
		t.Fatal(err)
	}
	b.server.prepare()
	if b.server.client == nil || len(r.asked()) != 0 {
		t.Errorf("there is a client: %t; asked %q, want nothing", b.server.client != nil, r.asked())
	}
	is(t, pull(t, b, backends.Request{Image: image}), host, "robot", "pw-of-harbor")
}
