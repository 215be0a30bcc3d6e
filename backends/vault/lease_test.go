package vault

import (
	"context"
	"encoding/json"
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
	for username = range users {
		password = users[username]
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
	want := []string{"PUT auth/approle/login 200", "GET sys/internal/ui/mounts/mq/creds/pull 200", "GET mq/creds/pull 200", "PUT auth/token/renew-self 200"} // the last has the login end with the lease
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

// left waits until there are so many users.
func left(t *testing.T, mq *vaultserver.RabbitMQ, n int) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	patience := time.After(2 * time.Minute)
	for len(mq.Users()) != n {
		select {
		case <-tick.C:
		case <-patience:
			t.Fatalf("there are %d users, want %d", len(mq.Users()), n)
		}
	}
}

// gone wants a lease's user to be removed, which Vault does soon after it has answered, and its login to be unknown.
func (r *rig) gone(mq *vaultserver.RabbitMQ, lease backends.Secret) {
	r.t.Helper()
	left(r.t, mq, 0)
	if l := loanOf(lease); l != nil {
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
		lent           time.Duration // for so long, at first, in place of what it was
		spoil          func(r *rig, lease backends.Secret) backends.Secret
	}{
		"its longest life is over soon": {lease: time.Hour, longest: 10 * time.Minute, lent: time.Hour},
		"its login is not renewed":      {lease: time.Hour, longest: time.Hour, settings: map[string]any{"token_explicit_max_ttl": "5m"}},
		"revoked": {lease: time.Hour, longest: time.Hour, spoil: func(r *rig, lease backends.Secret) backends.Secret {
			if err := r.API().Sys().Revoke(loanOf(lease).LeaseID); err != nil {
				r.t.Fatal(err)
			}
			return lease
		}},
		"its login revoked": {lease: time.Hour, longest: time.Hour, spoil: func(r *rig, lease backends.Secret) backends.Secret {
			if err := r.API().Auth().Token().RevokeTree(loanOf(lease).Token); err != nil {
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
			} else if test.lent > 0 {
				l := loanOf(lease)
				l.Duration = int(test.lent / time.Second)
				lease = l.lease(t.Context())
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
	for _, may := range []bool{true, false} { // in the end, one is left
		policies := []string{r.reads(r.name("mq") + "/creds/*")}
		if may {
			policies = append(policies, r.name("revoker"))
		}
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
		tokens[loanOf(lease).Token] = true
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

// TestALeaseDoesNotHangOnALoginInUse: otherwise whoever uses it would lose it with the lease.
func TestALeaseDoesNotHangOnALoginInUse(t *testing.T) {
	r := use(t)
	mq, c := r.lending(time.Hour, time.Hour, nil)
	path, _ := r.kv()
	c.Auth = r.appRole(nil, r.reads(r.name("secret")+"/*", r.name("mq")+"/*"))
	c.Secrets = []Secret{{MatchImages: []string{host}, Path: path}, c.Secrets[0]}
	b := r.backend(c)
	pull(t, b, backends.Request{Image: image}) // so that there is a login
	l, fresh, err := b.login(t.Context(), who{})
	if err != nil || fresh {
		t.Fatalf("%t, %v", fresh, err)
	}
	got := pull(t, b, backends.Request{Image: "quay.example/app"}) // meanwhile
	if loanOf(got.Lease).Token == string(l.token) {
		t.Error("the lease hangs on a login that is in use")
	}
	if err := b.Revoke(t.Context(), got.Lease); err != nil {
		t.Error(err)
	}
	r.gone(mq, got.Lease)
	if _, err := r.As(string(l.token)).Auth().Token().LookupSelf(); err != nil {
		t.Errorf("whoever used the login has lost it: %v", err)
	}
	b.leave(l)
}

// TestALoginThatNoLeaseHangsOn is given back, if it was made for one: nobody else knows of it.
func TestALoginThatNoLeaseHangsOn(t *testing.T) {
	r := use(t)
	path, _ := r.kv()
	c := Config{Auth: r.appRole(nil, r.reads(r.name("secret")+"/*")), Secrets: []Secret{{Path: strings.Replace(path, r.name("secret"), r.name("secret")+"/data", 1), Engine: EngineOther, DockerConfigField: "data"}}}
	b := r.backend(c)
	before := r.Tokens()
	l, _, err := b.login(t.Context(), who{}) // is in use meanwhile
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Credentials(t.Context(), backends.Request{Image: image}); err != nil {
		t.Error(err)
	}
	b.leave(l)
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	logins := 0
	for _, asked := range r.asked() {
		switch asked {
		case "PUT auth/approle/login 200":
			logins++
		case "PUT auth/token/revoke-self 204":
			logins--
		}
	}
	if logins != 0 {
		t.Errorf("%d logins are left, of %d tokens before and %d now", logins, before, r.Tokens())
	}
}

// TestARefusedRoleCostsNoLogin: no lease can hang on it, so that it serves on.
func TestARefusedRoleCostsNoLogin(t *testing.T) {
	r := use(t)
	_, c := r.lending(time.Hour, time.Hour, nil)
	c.Secrets[0].Path = r.name("mq") + "/creds/none"
	b := r.backend(c)
	for range 3 {
		_, err := b.Credentials(t.Context(), backends.Request{Image: image})
		fails(t, err, refused, "there is no such role")
	}
	logins := 0
	for _, asked := range r.asked() {
		if asked == "PUT auth/approle/login 200" {
			logins++
		}
	}
	if logins != 1 {
		t.Errorf("%d logins: %q", logins, r.asked())
	}
}

// TestALeaseThatNobodyGetsOfATokenOfTheSettings is given back at once: there is no login of ours that it would end with.
func TestALeaseThatNobodyGetsOfATokenOfTheSettings(t *testing.T) {
	r := use(t)
	for _, spoil := range []func(s *Secret){func(s *Secret) { s.PasswordField = "none" }, func(s *Secret) { s.ExpiresField = "password" }} {
		mq, c := r.lending(time.Hour, time.Hour, nil)
		r.Policy(r.name("revoker"), `path "sys/leases/revoke" { capabilities = ["update"] }`)
		c.Auth = Auth{TokenFile: r.file(r.Token([]string{r.reads(r.name("mq") + "/*"), r.name("revoker")}, nil))}
		spoil(&c.Secrets[0])
		if _, err := r.backend(c).Credentials(t.Context(), backends.Request{Image: image}); err == nil {
			t.Error("it is answered")
		}
		left(t, mq, 0)
		if err := r.API().Sys().Unmount(r.name("mq")); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNumbersInALease stay what they are.
func TestNumbersInALease(t *testing.T) {
	made := loan{Key: "k", LeaseID: "l", Data: map[string]any{"username": json.Number("12345678901234567")}}
	lease := made.lease(t.Context())
	again := loanOf(lease)
	if again == nil || again.data["username"] != json.Number("12345678901234567") || again.lease(t.Context()) != lease {
		t.Errorf("%+v", again)
	}
}

// TestAnEngineWithoutLeases: nothing hangs on the login, which is given back.
func TestAnEngineWithoutLeases(t *testing.T) {
	r := use(t)
	path, _ := r.kv()
	auth := r.appRole(nil, r.reads(r.name("secret")+"/data/registries/*"))
	c := Config{Auth: auth, Secrets: []Secret{{Path: strings.Replace(path, r.name("secret"), r.name("secret")+"/data", 1), Engine: EngineOther, DockerConfigField: "data"}}}
	b := r.backend(c)
	got, err := b.Credentials(t.Context(), backends.Request{Image: image})
	if err != nil || got.Lease != "" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := b.Credentials(t.Context(), backends.Request{Image: image}); err != nil {
		t.Error(err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	want := []string{"PUT auth/approle/login 200", "GET secret/data/registries/harbor.example 200", "GET secret/data/registries/harbor.example 200", "PUT auth/token/revoke-self 204"}
	if asked := r.asked(); !slices.Equal(asked, want) {
		t.Errorf("asked %q", asked)
	}
}

// TestALeaseThatNobodyGets is given back: otherwise each pull would make another one.
func TestALeaseThatNobodyGets(t *testing.T) {
	r := use(t)
	mq, c := r.lending(time.Hour, time.Hour, nil)
	c.Secrets[0].PasswordField = "token"
	b := r.backend(c)
	for range 3 {
		_, err := b.Credentials(t.Context(), backends.Request{Image: image})
		fails(t, err, refused, `the secret has no field "token": it has "password", "username"`)
	}
	oneUser(t, mq)
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	r.gone(mq, "")
}

// TestWhoeverNamesAnImageEndsNobodysLease: a request that fails leaves alone what others have.
func TestWhoeverNamesAnImageEndsNobodysLease(t *testing.T) {
	r := use(t)
	mq, c := r.lending(time.Hour, time.Hour, nil)
	c.Secrets = []Secret{{Path: r.name("mq") + "/creds/pull", Registry: host, MatchImages: []string{host, "other.example"}}, {Path: r.name("mq") + "/creds/pull", PasswordField: "none"}}
	b := r.backend(c)
	pull(t, b, backends.Request{Image: image})
	_, err := b.Credentials(t.Context(), backends.Request{Image: "other.example/app"})
	fails(t, err, misconfigured, "harbor.example is no auth key for the image other.example/app")
	_, err = b.Credentials(t.Context(), backends.Request{Image: "third.example/app"})
	fails(t, err, refused, `the secret has no field "none"`)
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	oneUser(t, mq)
}

// TestOneLeaseOfAnAnswer: a broker knows leases by the answers that have them, whole.
func TestOneLeaseOfAnAnswer(t *testing.T) {
	r := use(t)
	mq, c := r.lending(time.Hour, time.Hour, nil)
	mq.Role("push", nil)
	c.All = true
	c.Secrets = []Secret{{Path: r.name("mq") + "/creds/pull"}, {Path: r.name("mq") + "/creds/pull", Registry: "{host}/team-a"}, {MatchImages: []string{host + "/team-a"}, Path: r.name("mq") + "/creds/push"}}
	b := r.backend(c)
	got, err := b.Credentials(t.Context(), backends.Request{Image: image})
	if err != nil || len(got.Credentials) != 2 || loanOf(got.Lease) == nil || got.CacheDuration == nil || *got.CacheDuration != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	other, err := b.Credentials(t.Context(), backends.Request{Image: host + "/team-a-too"})
	if err != nil || other.Lease != got.Lease {
		t.Errorf("%+v, %v", other, err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	left(t, mq, 1)
}

// TestSealedAtHalfOfALease: what there is holds for a while yet.
func TestSealedAtHalfOfALease(t *testing.T) {
	r := use(t)
	mq, c := r.lending(time.Hour, time.Hour, nil)
	b := r.backend(c)
	now := time.Now()
	b.server.now = func() time.Time { return now }
	b.loans.Now, b.logins.Now = b.server.now, b.server.now
	b.server.sleep = func(context.Context, time.Duration) bool { return true }
	first := pull(t, b, backends.Request{Image: image})
	r.front.Fail(vaultSays(503, "Vault is sealed"))
	now = now.Add(31 * time.Minute)
	username, password := oneUser(t, mq)
	got := pull(t, b, backends.Request{Image: "quay.example/app"})
	is(t, got, "quay.example", username, password)
	if !got.Credentials[0].Expires.Equal(first.Credentials[0].Expires) || got.Lease != first.Lease {
		t.Errorf("%+v", got)
	}
	now = now.Add(29 * time.Minute)
	_, err := b.Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, unavailable, "Vault is sealed")
}

// TestTheCredentialsOwnEnd is not put off by a renewal.
func TestTheCredentialsOwnEnd(t *testing.T) {
	r := use(t)
	_, c := r.lending(time.Hour, 24*time.Hour, nil)
	b := r.backend(c)
	first := pull(t, b, backends.Request{Image: image})
	l := loanOf(first.Lease)
	l.Ends = time.Now().Add(50 * time.Minute).Truncate(time.Second)
	got, err := r.backend(c).Renew(t.Context(), backends.Request{Image: image}, l.lease(t.Context()))
	if err != nil || !got.Credentials[0].Expires.Equal(l.Ends) {
		t.Errorf("%+v, %v, want %s", got, err, l.Ends)
	}
}

// TestAnEngineThatLendsNoMore: what was known of the path does not outlive the engine.
func TestAnEngineThatLendsNoMore(t *testing.T) {
	r := use(t)
	_, c := r.lending(time.Hour, time.Hour, nil)
	c.Auth = r.appRole(nil, r.reads(r.name("mq")+"/*"))
	b := r.backend(c)
	now := time.Now()
	b.server.now = func() time.Time { return now }
	b.loans.Now, b.logins.Now = b.server.now, b.server.now
	pull(t, b, backends.Request{Image: image})
	if err := r.API().Sys().Unmount(r.name("mq")); err != nil {
		t.Fatal(err)
	}
	r.KV2(r.name("mq"))
	r.Put(r.name("mq"), "creds/pull", map[string]any{"username": "u", "password": "p"})
	now = now.Add(31 * time.Minute)
	is(t, pull(t, b, backends.Request{Image: image}), host, "u", "p")
}
