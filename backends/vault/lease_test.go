package vault

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/vaultserver"
)

// lending has an engine that makes users, and a login that may have them made.
func (r *rig) lending(lease, longest time.Duration, settings map[string]any) (*vaultserver.RabbitMQ, Config) {
	r.t.Helper()
	mq := r.RabbitMQ(r.name("mq"))
	mq.Role("pull", nil)
	mq.Lease(lease, longest)
	return mq, Config{Auth: r.appRole(settings, r.reads(r.name("mq")+"/creds/*")), Secrets: []Secret{{Path: r.name("mq") + "/creds/pull"}}}
}

// oneUser is the only user that there is, as user name and password.
func oneUser(t *testing.T, mq *vaultserver.RabbitMQ) (username, password string) {
	t.Helper()
	users := mq.Users()
	if len(users) != 1 {
		t.Fatalf("%d users", len(users))
	}
	for username, password = range users {
	}
	return username, password
}

// TestALease serves all images, until half of its life is over; then the same one is renewed. It survives its login's end of use, and ends with a revocation.
func TestALease(t *testing.T) {
	r := use(t)
	mq, c := r.lending(time.Hour, 24*time.Hour, map[string]any{"token_ttl": "2h"})
	b := r.backend(c)
	now := time.Now()
	b.server.now = func() time.Time { return now }
	b.loans.Now, b.logins.Now = b.server.now, b.server.now
	var lease backends.Secret
	for _, image := range []backends.Image{image, host + "/other/app", "quay.example/app"} {
		got := pull(t, b, backends.Request{Image: image})
		username, password := oneUser(t, mq)
		is(t, got, image.Host(), username, password)
		if left := got.Credentials[0].Expires.Sub(now); left < 59*time.Minute || left > time.Hour {
			t.Errorf("it lasts for %s", left)
		}
		if lease != "" && got.Lease != lease || got.Lease == "" {
			t.Errorf("answers that share a lease have another Lease each")
		}
		lease = got.Lease
	}
	want := []string{"PUT auth/approle/login 200", "GET sys/internal/ui/mounts/mq/creds/pull 200", "GET mq/creds/pull 200"}
	if asked := r.asked(); !slices.Equal(asked, want) {
		t.Errorf("asked %q", asked)
	}

	r.front.Forget()
	now = now.Add(31 * time.Minute)
	renewed, err := b.Renew(t.Context(), backends.Request{Image: image}, lease)
	if err != nil || renewed.Lease != lease || renewed.Credentials[0].Expires.Sub(now) < 59*time.Minute {
		t.Errorf("%+v, %v", renewed, err)
	}
	again, err := b.Renew(t.Context(), backends.Request{Image: "quay.example/app"}, lease) // of another answer
	if err != nil || again.Lease != lease {
		t.Errorf("%+v, %v", again, err)
	}
	if asked := r.asked(); !slices.Equal(asked, []string{"PUT auth/token/renew-self 200", "PUT sys/leases/renew 200"}) {
		t.Errorf("asked %q", asked)
	}

	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	oneUser(t, mq) // the login that it hangs on is not revoked

	other := r.backend(c) // another process
	if err := other.Revoke(t.Context(), lease); err != nil {
		t.Error(err)
	}
	r.gone(mq, lease)
	if err := other.Revoke(t.Context(), lease); err != nil {
		t.Errorf("what has ended cannot be revoked: %v", err)
	}
}

// gone wants a lease's user to be removed, which Vault does soon after it has answered, and its login to be unknown.
func (r *rig) gone(mq *vaultserver.RabbitMQ, lease backends.Secret) {
	r.t.Helper()
	for len(mq.Users()) > 0 {
		if r.t.Context().Err() != nil {
			r.t.Fatal("the user is still there")
		}
		time.Sleep(10 * time.Millisecond) // polls
	}
	for _, l := range loansOf(lease) {
		if _, err := r.As(l.Token).Auth().Token().LookupSelf(); l.Token != "" && err == nil {
			r.t.Error("the login is still good")
		}
	}
}

// TestAnotherProcessRenews what this one lent.
func TestAnotherProcessRenews(t *testing.T) {
	r := use(t)
	mq, c := r.lending(time.Hour, 24*time.Hour, nil)
	first := pull(t, r.backend(c), backends.Request{Image: image})
	r.front.Forget()
	got, err := r.backend(c).Renew(t.Context(), backends.Request{Image: image}, first.Lease)
	if err != nil {
		t.Fatal(err)
	}
	username, password := oneUser(t, mq)
	is(t, got, host, username, password)
	for _, q := range r.front.Requests() {
		if strings.HasPrefix(q.Path, r.name("mq")) {
			t.Errorf("another one was made: %s", q.Path)
		}
	}
	if got.Lease != first.Lease {
		t.Error("the same lease is told otherwise")
	}
}

// TestWhatIsNotWorthARenewal is replaced: a lease whose login ends, one at the end of its longest life, one that has been revoked, and what is no lease.
func TestWhatIsNotWorthARenewal(t *testing.T) {
	for name, test := range map[string]struct {
		lease, longest time.Duration
		settings       map[string]any
		spoil          func(r *rig, lease backends.Secret) backends.Secret
	}{
		"its longest life is over soon": {lease: time.Hour, longest: 10 * time.Minute},
		"its login is not renewed":      {lease: time.Hour, longest: time.Hour, settings: map[string]any{"token_explicit_max_ttl": "5m"}},
		"revoked": {lease: time.Hour, longest: time.Hour, spoil: func(r *rig, lease backends.Secret) backends.Secret {
			if err := r.API().Sys().Revoke(loansOf(lease)[0].LeaseID); err != nil {
				r.t.Fatal(err)
			}
			return lease
		}},
		"its login revoked": {lease: time.Hour, longest: time.Hour, spoil: func(r *rig, lease backends.Secret) backends.Secret {
			if err := r.API().Auth().Token().RevokeTree(loansOf(lease)[0].Token); err != nil {
				r.t.Fatal(err)
			}
			return lease
		}},
		"no lease of ours": {lease: time.Hour, longest: time.Hour, spoil: func(*rig, backends.Secret) backends.Secret { return "nonsense" }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := use(t)
			_, c := r.lending(test.lease, test.longest, test.settings)
			first := pull(t, r.backend(c), backends.Request{Image: image})
			lease := first.Lease
			if test.spoil != nil {
				lease = test.spoil(r, lease)
			} else { // time has passed: it was lent for longer than can be had now
				l := loansOf(lease)
				l[0].Duration = int(4 * time.Hour / time.Second)
				lease = leaseOf(t.Context(), l)
			}
			got, err := r.backend(c).Renew(t.Context(), backends.Request{Image: image}, lease)
			if err != nil || len(got.Credentials) != 1 || got.Credentials[0].Username == first.Credentials[0].Username || got.Lease == "" || got.Lease == first.Lease {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// TestTheSoonerEnds: a lease does not outlast its login.
func TestTheSoonerEnds(t *testing.T) {
	r := use(t)
	_, c := r.lending(time.Hour, time.Hour, map[string]any{"token_ttl": "10m"})
	got := pull(t, r.backend(c), backends.Request{Image: image})
	if left := time.Until(got.Credentials[0].Expires); left > 10*time.Minute || left < 9*time.Minute {
		t.Errorf("it lasts for %s", left)
	}
	c.Auth = Auth{TokenFile: r.file(r.Token([]string{r.reads(r.name("mq") + "/creds/*")}, map[string]any{"ttl": "20m"}))}
	got = pull(t, r.backend(c), backends.Request{Image: image})
	if left := time.Until(got.Credentials[0].Expires); left > 20*time.Minute || left < 19*time.Minute {
		t.Errorf("with a token of the settings, it lasts for %s", left)
	}
}

// TestATokenOfTheSettings is never revoked; its leases are, by their names, where its policies let it.
func TestATokenOfTheSettings(t *testing.T) {
	r := use(t)
	mq, c := r.lending(time.Hour, time.Hour, nil)
	r.Policy(r.name("revoker"), `path "sys/leases/revoke" { capabilities = ["update"] }`)
	for may, policies := range map[bool][]string{true: {r.reads(r.name("mq") + "/creds/*"), r.name("revoker")}, false: {r.reads(r.name("mq") + "/creds/*")}} {
		token := r.Token(policies, nil)
		c.Auth = Auth{TokenFile: r.file(token)}
		b := r.backend(c)
		got := pull(t, b, backends.Request{Image: image})
		before := got.Credentials[0].Username
		if renewed, err := b.Renew(t.Context(), backends.Request{Image: image}, got.Lease); err != nil || renewed.Credentials[0].Username != before {
			t.Errorf("%+v, %v", renewed, err)
		}
		err := r.backend(c).Revoke(t.Context(), got.Lease)
		if may {
			if err != nil {
				t.Error(err)
			}
			r.gone(mq, got.Lease)
		} else {
			fails(t, err, refused, "revoke a lease: permission denied", "path \"sys/leases/revoke\" { capabilities = [\"update\"] }")
		}
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := r.As(token).Auth().Token().LookupSelf(); err != nil {
			t.Errorf("the token was revoked: %v", err)
		}
	}
}

// TestOneLeaseForManyAtOnce, and logins that others use are not taken for it.
func TestOneLeaseForManyAtOnce(t *testing.T) {
	r := use(t)
	mq, c := r.lending(time.Hour, time.Hour, nil)
	mq.Role("push", nil)
	c.Secrets = []Secret{{MatchImages: []string{"*.push"}, Path: r.name("mq") + "/creds/push"}, {Path: r.name("mq") + "/creds/pull"}}
	b := r.backend(c)
	var wait sync.WaitGroup
	var mu sync.Mutex
	leases := map[backends.Secret]bool{}
	for i := range 40 {
		wait.Go(func() {
			image := backends.Image(image)
			if i%2 == 0 {
				image = "registry.push/app"
			}
			got, err := b.Credentials(context.WithoutCancel(t.Context()), backends.Request{Image: image})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			leases[got.Lease] = true
		})
	}
	wait.Wait()
	if len(leases) != 2 || len(mq.Users()) != 2 {
		t.Fatalf("%d leases, %d users", len(leases), len(mq.Users()))
	}
	tokens := map[string]bool{}
	for lease := range leases {
		tokens[loansOf(lease)[0].Token] = true
	}
	if len(tokens) != 2 {
		t.Error("two leases hang on one login")
	}
	for lease := range leases {
		if err := b.Revoke(t.Context(), lease); err != nil {
			t.Error(err)
		}
	}
	r.gone(mq, slices.Collect(maps.Keys(leases))[0])
}

// TestAnEngineWithoutLeases: nothing hangs on the login, which is given back.
func TestAnEngineWithoutLeases(t *testing.T) {
	r := use(t)
	path, auth := r.kv()
	policy := r.reads(r.name("secret") + "/data/registries/*")
	auth = r.appRole(nil, policy)
	c := Config{Auth: auth, Secrets: []Secret{{Path: strings.Replace(path, r.name("secret"), r.name("secret")+"/data", 1), Engine: EngineOther, DockerConfigField: "data"}}}
	b := r.backend(c)
	got, err := b.Credentials(t.Context(), backends.Request{Image: image})
	if err != nil || got.Lease != "" {
		t.Errorf("%+v, %v", got, err)
	}
	b.revocations.Wait()
	if asked := r.asked(); asked[len(asked)-1] != "PUT auth/token/revoke-self 204" {
		t.Errorf("asked %q", asked)
	}
}

// TestALeaseThatNobodyGets is given back: otherwise each pull would make another one.
func TestALeaseThatNobodyGets(t *testing.T) {
	r := use(t)
	mq, c := r.lending(time.Hour, time.Hour, nil)
	c.Secrets[0].PasswordField = "token"
	_, err := r.backend(c).Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, refused, `the secret has no field "token": it has "password", "username"`)
	r.gone(mq, "")
}
