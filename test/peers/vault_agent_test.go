//go:build linux

package peers

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/peers/internal/program"
	"github.com/credential-broker/credential-broker/test/vaultserver"
)

const (
	vaultHost     = "harbor.example"
	vaultOther    = "mirror.example"
	vaultImages   = 50
	vaultAudience = "vault"
	// robotPassword is that of the secret in the KV engine.
	robotPassword = "pw-of-harbor"
	// shortLease is the life of a lease of which the end is to be seen. The agent renews nothing that it may give out for less than a minute, and gives nothing out for the last half minute.
	shortLease = 100 * time.Second
)

func vaultImage(host string, n int) string { return fmt.Sprintf("%s/team/app-%d", host, n) }

// sharedVault is the server of all tests that leave it unsealed; each has mounts of its own. It is started by the first that wants it.
var sharedVault vaultserver.Shared

var vaultScenes atomic.Int32

// vaultScene is a scene whose broker has a provider for two registries, by credentials of Vault's.
type vaultScene struct {
	*scene
	vault *vaultserver.Server
	front *vaultserver.Front
	n     int32
	// made is the dynamic engine, if there is one.
	made *vaultserver.RabbitMQ
}

// newVaultScene puts a scene before the shared server.
func newVaultScene(t *testing.T) *vaultScene {
	t.Helper()
	return vaultSceneAt(t, sharedVault.Get(t))
}

func vaultSceneAt(t *testing.T, server *vaultserver.Server) *vaultScene {
	t.Helper()
	s := &vaultScene{scene: newScene(t), vault: server, front: server.Front(), n: vaultScenes.Add(1)}
	s.image = vaultImage(vaultHost, 0)
	s.provider = map[string]any{"name": "vault", "backend": "vault", "matchImages": []string{vaultHost, vaultOther}, "defaultCacheDuration": "1h"}
	s.settings = map[string]any{"address": s.front.Address(), "caFile": server.CAFile()}
	s.timeout = "55s" // longer than Vault is made to be busy, on a machine with other work too
	return s
}

// mount is a name that no other test has.
func (s *vaultScene) mount(what string) string { return fmt.Sprintf("%s-%d", what, s.n) }

// reads gives a policy that may read a path.
func (s *vaultScene) reads(path string) []string {
	s.vault.Policy(s.mount("reader"), fmt.Sprintf("path %q { capabilities = [\"read\"] }", path))
	return []string{s.mount("reader")}
}

// node has the node log in, by AppRole, whose role's settings are given besides.
func (s *vaultScene) node(policies []string, settings map[string]any) {
	s.Helper()
	roleID, secretID := s.vault.AppRole(s.mount("approle"), "node", policies, settings)
	s.settings["auth"] = map[string]any{"method": "approle", "mount": s.mount("approle"), "roleID": roleID, "secretIDFile": s.write("secret-id", secretID, 0o600)}
}

// secrets are the entries of the settings.
func (s *vaultScene) secrets(all ...map[string]any) { s.settings["secrets"] = all }

// kept is a secret in a KV engine, which the node may read.
func (s *vaultScene) kept() map[string]any {
	s.Helper()
	s.vault.KV2(s.mount("secret"))
	s.vault.Put(s.mount("secret"), "registries/robot", map[string]any{"username": "robot", "password": robotPassword})
	s.node(s.reads(s.mount("secret")+"/data/registries/*"), nil)
	return map[string]any{"path": s.mount("secret") + "/registries/robot"}
}

// lent is a secret that an engine makes for whoever asks, for so long, and which the node may read. The node's login lives no longer.
func (s *vaultScene) lent(ttl time.Duration) map[string]any {
	s.Helper()
	s.made = s.vault.RabbitMQ(s.mount("rabbitmq"))
	s.made.Role("pull", nil)
	s.made.Lease(ttl, 24*time.Hour)
	path := s.mount("rabbitmq") + "/creds/pull"
	s.node(s.reads(path), map[string]any{"token_ttl": ttl.String()})
	return map[string]any{"path": path}
}

// works: a credential of the dynamic engine's can be used now.
func (s *vaultScene) works(l login) bool {
	password, ok := s.made.Users()[l.Username]
	return ok && password == l.Password
}

// leases is how many there are.
func (s *vaultScene) leases() int { return len(s.vault.Leases(s.mount("rabbitmq") + "/creds/pull")) }

// requests counts those to a path that ended with a status. Of the path its beginning is enough.
func (s *vaultScene) requests(method, path string, status int) (n int) {
	for _, r := range s.front.Requests() {
		if r.Method == method && strings.HasPrefix(r.Path, path) && r.Status == status {
			n++
		}
	}
	return n
}

func (s *vaultScene) logins(status int) int {
	return s.requests(http.MethodPut, "auth/"+s.mount("approle")+"/login", status) + s.requests(http.MethodPut, "auth/"+s.mount("jwt")+"/login", status)
}

// reading counts the reads of secrets, of either engine.
func (s *vaultScene) reading(status int) int {
	return s.requests(http.MethodGet, s.mount("secret")+"/data/", status) + s.requests(http.MethodGet, s.mount("rabbitmq")+"/creds/", status)
}

func (s *vaultScene) lookUps() int { return s.requests(http.MethodGet, "sys/internal/ui/mounts/", 200) }

func (s *vaultScene) renewals(status int) int {
	return s.requests(http.MethodPut, "sys/leases/renew", status)
}

// gaveBack counts the logins that were given back.
func (s *vaultScene) gaveBack() int { return s.requests(http.MethodPut, "auth/token/revoke-self", 204) }

// asked is for messages: what Vault was asked.
func (s *vaultScene) asked() string {
	var all strings.Builder
	for _, r := range s.front.Requests() {
		fmt.Fprintf(&all, "\n  %s %s %d", r.Method, r.Path, r.Status)
	}
	return all.String()
}

// await waits until something has happened. Its patience is no measure of the machine's speed.
func (s *vaultScene) await(what string, happened func() bool) {
	s.Helper()
	deadline, tick := time.After(6*time.Minute), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for !happened() {
		select {
		case <-tick.C:
		case <-deadline:
			s.Fatalf("%s: not seen; Vault was asked:%s", what, s.asked())
		}
	}
}

// answer is what the node gets for an image.
func (s *vaultScene) answer(ask asker, image string) login {
	s.Helper()
	l, err := ask(s.Context(), image, puller{})
	if err != nil {
		s.Fatal(err)
	}
	return l
}

// pullAll asks for so many images of each registry at once, and gives the different answers.
func (s *vaultScene) pullAll(ask asker, hosts ...string) []login {
	s.Helper()
	var mu sync.Mutex
	all := map[login]bool{}
	s.atOnce(vaultImages, func(n int) error {
		l, err := ask(s.Context(), vaultImage(hosts[n%len(hosts)], n), puller{})
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		all[l] = true
		return nil
	})
	return slices.Collect(maps.Keys(all))
}

// TestFiftyImagesAreOneLoginAndOneReadOfVault starts as many pods at once as a node that comes up.
func TestFiftyImagesAreOneLoginAndOneReadOfVault(t *testing.T) {
	t.Parallel()
	// Where a pattern has a path, another image may have another answer, and the backend is asked for each.
	byTeam := func(secret map[string]any) []map[string]any {
		teams := maps.Clone(secret)
		teams["matchImages"] = []string{vaultHost + "/team"}
		return []map[string]any{teams, secret}
	}
	for name, c := range map[string]struct {
		given   func(*vaultScene)
		hosts   []string
		lookUps int
		reads   int
		lent    bool
	}{
		"a secret in KV": {given: func(s *vaultScene) { s.secrets(s.kept()) }, hosts: []string{vaultHost}, lookUps: 1, reads: 1},
		"a secret in KV, whose engine the settings name": {given: func(s *vaultScene) {
			secret := s.kept()
			secret["engine"] = "kv2"
			s.secrets(secret)
		}, hosts: []string{vaultHost}, reads: 1},
		"a secret in KV, image by image":    {given: func(s *vaultScene) { s.secrets(byTeam(s.kept())...) }, hosts: []string{vaultHost}, lookUps: 1, reads: vaultImages},
		"a lent credential":                 {given: func(s *vaultScene) { s.secrets(s.lent(time.Hour)) }, hosts: []string{vaultHost}, lookUps: 1, reads: 1, lent: true},
		"a lent credential, image by image": {given: func(s *vaultScene) { s.secrets(byTeam(s.lent(time.Hour))...) }, hosts: []string{vaultHost}, lookUps: 1, reads: 1, lent: true},
		"a lent credential, two registries": {given: func(s *vaultScene) { s.secrets(s.lent(time.Hour)) }, hosts: []string{vaultHost, vaultOther}, lookUps: 1, reads: 1, lent: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newVaultScene(t)
			c.given(s)
			answers := s.pullAll(s.throughAgent(), c.hosts...)
			if len(answers) != 1 {
				t.Fatalf("%d different answers, want 1", len(answers))
			}
			if logins, lookUps, reads := s.logins(200), s.lookUps(), s.reading(200); logins != 1 || lookUps != c.lookUps || reads != c.reads || len(s.front.Requests()) != 1+c.lookUps+c.reads {
				t.Errorf("%d logins, %d look-ups of the engine and %d reads, want 1, %d and %d and nothing else:%s", logins, lookUps, reads, c.lookUps, c.reads, s.asked())
			}
			switch got := answers[0]; {
			case !c.lent && got != login{"robot", robotPassword}:
				t.Errorf("not what is in Vault: %s", got.Username)
			case c.lent && (!s.works(got) || s.leases() != 1):
				t.Errorf("%d leases, want 1; what was answered works: %t", s.leases(), s.works(got))
			}
		})
	}
}

// TestTheAgentRenewsALeaseOfVault asks once, and then nobody does for longer than the lease was for: the credential lives on, with the login that it hangs on. This takes two minutes, and would not notice being slow.
func TestTheAgentRenewsALeaseOfVault(t *testing.T) {
	t.Parallel()
	s := newVaultScene(t)
	s.secrets(s.lent(shortLease))
	began := time.Now()
	ask := s.throughAgent()
	first := s.answer(ask, s.image)
	s.await("the end of what the lease was for at first", func() bool { return time.Since(began) > shortLease+10*time.Second })
	if !s.works(first) {
		t.Fatalf("the credential has ended; Vault was asked:%s", s.asked())
	}
	if again := s.answer(ask, s.image); again != first {
		t.Error("there is another credential, although the first one was renewed")
	}
	if renewals := s.renewals(200); renewals == 0 || s.requests(http.MethodPut, "auth/token/renew-self", 200) != renewals || s.logins(200) != 1 || s.reading(200) != 1 || s.leases() != 1 {
		t.Errorf("want one login and one lease, both renewed each time:%s", s.asked())
	}
}

// TestALeaseThatManyImagesShareIsRenewedForAll has fifty answers of one lease, which the agent keeps for each image.
func TestALeaseThatManyImagesShareIsRenewedForAll(t *testing.T) {
	t.Parallel()
	s := newVaultScene(t)
	secret := s.lent(shortLease)
	secret["matchImages"] = []string{vaultHost + "/team"}
	s.secrets(secret)
	began := time.Now()
	ask := s.throughAgent()
	first := s.pullAll(ask, vaultHost)
	s.await("the end of what the lease was for at first", func() bool { return time.Since(began) > shortLease+10*time.Second })
	again := s.pullAll(ask, vaultHost)
	if len(first) != 1 || !slices.Equal(first, again) || !s.works(first[0]) || s.leases() != 1 || s.reading(200) != 1 {
		t.Errorf("%d answers, then %d, by %d leases, want the same one for all:%s", len(first), len(again), s.leases(), s.asked())
	}
	// Whoever renews it for one image has renewed it for the others.
	if n := s.renewals(200); n == 0 || n > 10 {
		t.Errorf("%d renewals of one lease", n)
	}
}

// pod gives a pod's token of an issuer's.
func (s *vaultScene) pod(from *cloud.Issuer, namespace, account string) puller {
	return puller{token: from.Token(map[string]any{
		"sub": "system:serviceaccount:" + namespace + ":" + account, "aud": []string{vaultAudience}, "nbf": s.Now().Unix(), "exp": s.Now().Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": account, "uid": "uid of " + account}},
	})}
}

// TestPodsAndTheNodeNeverMixInVault has two pods and the node, who log in to Vault by tokens of their own, ask for the same images at once, again and again, and between them a pod that Vault lets in nowhere: each gets its own
// credential, and the last one none. The engine names its users after the identity that asked.
func TestPodsAndTheNodeNeverMixInVault(t *testing.T) {
	t.Parallel()
	s := newVaultScene(t)
	secret := s.lent(time.Hour)
	issuer := s.AddIssuer("https://kubernetes.default.svc")
	s.vault.JWT(s.mount("jwt"), issuer)
	s.vault.JWTRole(s.mount("jwt"), "puller", map[string]any{
		"token_policies": s.reads(s.mount("rabbitmq") + "/creds/pull"), "bound_claims_type": "glob",
		"bound_claims": map[string]any{"/kubernetes.io/namespace": []string{"shop", "kube-system"}},
	})
	s.settings["auth"] = map[string]any{"method": "jwt", "mount": s.mount("jwt"), "role": "puller", "tokenFile": s.write("token", s.pod(issuer, "kube-system", "node").token, 0o600)}
	s.secrets(secret)
	s.provider["tokenAttributes"] = map[string]any{"serviceAccountTokenAudience": vaultAudience, "cacheType": "ServiceAccount"}
	type who struct {
		puller
		subject string // empty: it gets nothing
	}
	everybody := []who{
		{puller{}, "kube-system:node"}, {s.pod(issuer, "shop", "cart"), "shop:cart"}, {s.pod(issuer, "shop", "till"), "shop:till"}, {s.pod(issuer, "cellar", "cart"), ""},
	}
	ask := s.throughAgent()
	s.atOnce(80, func(i int) error {
		asks := everybody[i%len(everybody)]
		l, err := ask(t.Context(), vaultImage(vaultHost, i/len(everybody)%4), asks.puller)
		switch {
		case asks.subject == "" && err == nil:
			return errors.New("whom Vault does not let in got a credential")
		case asks.subject == "" && !strings.Contains(err.Error(), "cellar/cart"):
			return fmt.Errorf("a refusal that does not say whose: %w", err)
		case asks.subject == "":
			return nil
		case err != nil:
			return err
		case !strings.Contains(l.Username, "system:serviceaccount:"+asks.subject+"-") || !s.works(l):
			return fmt.Errorf("a credential of %q, want one of %s", l.Username, asks.subject)
		}
		return nil
	})
	// One each, so that it was the agent that had to keep them apart.
	if logins, leases := s.logins(200), s.leases(); logins != 3 || leases != 3 {
		t.Errorf("%d logins and %d leases, want 3 of each:%s", logins, leases, s.asked())
	}
}

// TestASealedVaultLosesNoPull seals Vault until the agent has tried in vain to renew what it holds, and then unseals it, while pulls go on. The lease lives for four minutes, of which the outage is to take less: this takes about
// three.
func TestASealedVaultLosesNoPull(t *testing.T) {
	t.Parallel()
	s := vaultSceneAt(t, vaultserver.New(t, vaultserver.Options{}))
	s.secrets(s.lent(4 * time.Minute))
	ask := s.throughAgent()
	first := s.answer(ask, s.image)
	s.vault.Seal()
	pull := func() {
		t.Helper()
		if got := s.pullAll(ask, vaultHost); len(got) != 1 || got[0] != first {
			t.Errorf("%d answers, or another than before", len(got))
		}
	}
	pull()
	s.await("an attempt to renew", func() bool { return s.requests(http.MethodPut, "", 503) > 0 })
	pull()
	// A registry that nobody has asked for yet has the same lease, which holds for a while yet.
	if other, err := ask(t.Context(), vaultImage(vaultOther, 0), puller{}); err != nil || other.Username != first.Username {
		t.Errorf("another registry gets %q, %v", other.Username, err)
	}
	if status, err := s.vault.API().Sys().SealStatus(); err != nil || !status.Sealed {
		t.Errorf("Vault is not away, and this shows nothing: %+v, %v", status, err)
	}
	s.vault.Unseal()
	s.await("the renewal", func() bool { return s.renewals(200) > 0 })
	pull()
	if !s.works(first) || s.leases() != 1 {
		t.Errorf("%d leases, want the one of the beginning, which works: %t", s.leases(), s.works(first))
	}
}

// TestEverybodyWaitsForABusyVault has Vault answer once as its quotas do: it is left alone for as long as it says, by all who wait; then one of them asks for all.
func TestEverybodyWaitsForABusyVault(t *testing.T) {
	t.Parallel()
	const busy = 3 * time.Second
	for name, c := range map[string]struct {
		given func(*vaultScene)
		path  func(*vaultScene) string
		count func(s *vaultScene, status int) int
	}{
		"at the login": {func(s *vaultScene) { s.secrets(s.kept()) }, func(s *vaultScene) string { return "auth/" + s.mount("approle") + "/login" }, (*vaultScene).logins},
		"at the engine's": {func(s *vaultScene) { s.secrets(s.kept()) }, func(*vaultScene) string { return "sys/internal/ui/mounts/" }, func(s *vaultScene, status int) int {
			return s.requests(http.MethodGet, "sys/internal/ui/mounts/", status)
		}},
		"at the secret": {func(s *vaultScene) { s.secrets(s.kept()) }, func(s *vaultScene) string { return s.mount("secret") + "/data/" }, (*vaultScene).reading},
		"at the lease, image by image": {func(s *vaultScene) {
			secret := s.lent(time.Hour)
			secret["matchImages"] = []string{vaultHost + "/team"}
			s.secrets(secret)
		}, func(s *vaultScene) string { return s.mount("rabbitmq") + "/creds/" }, (*vaultScene).reading},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newVaultScene(t)
			c.given(s)
			ask := s.throughAgent()
			s.front.Fail(vaultserver.Fault{
				Path: c.path(s), Times: 1, Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": []string{fmt.Sprint(int(busy.Seconds()))}}, Body: `{"errors":["rate limit quota exceeded"]}`,
			})
			began := time.Now()
			answers := s.pullAll(ask, vaultHost)
			if took := time.Since(began); took < busy {
				t.Errorf("all have their answer after %s, and nobody was to ask again within %s", took, busy)
			}
			if refused, answered := c.count(s, 429), c.count(s, 200); refused != 1 || answered != 1 || len(answers) != 1 {
				t.Errorf("%d requests were refused and %d answered, want one of each, and %d answers:%s", refused, answered, len(answers), s.asked())
			}
		})
	}
}

// revoke ends the login with which a secret was read last.
func (s *vaultScene) revoke() {
	s.Helper()
	var token string
	for _, r := range s.front.Requests() {
		if r.Method == http.MethodGet && r.Token != "" {
			token = r.Token
		}
	}
	if err := s.vault.API().Auth().Token().RevokeTree(token); err != nil {
		s.Fatal(err)
	}
}

// TestALoginThatIsRevokedMidWayIsMadeAnew ends the login that the backend keeps. The next image that needs it gets its credential all the same.
func TestALoginThatIsRevokedMidWayIsMadeAnew(t *testing.T) {
	t.Parallel()
	s := newVaultScene(t)
	s.secrets(s.kept())
	ask := s.throughAgent()
	s.answer(ask, s.image)
	s.revoke()
	if got := s.answer(ask, vaultImage(vaultOther, 0)); got.Password != robotPassword {
		t.Error("not what is in Vault")
	}
	if logins, refused, read := s.logins(200), s.reading(403), s.reading(200); logins != 2 || refused != 1 || read != 2 {
		t.Errorf("%d logins, %d reads that were refused and %d that were not, want 2, 1 and 2:%s", logins, refused, read, s.asked())
	}
}

// TestALeaseWhoseLoginIsRevokedIsMadeAnew ends the login that a lease hangs on, and with it the credential. When the agent renews it there is another one, and nobody had to ask.
func TestALeaseWhoseLoginIsRevokedIsMadeAnew(t *testing.T) {
	t.Parallel()
	s := newVaultScene(t)
	s.secrets(s.lent(shortLease))
	ask := s.throughAgent()
	first := s.answer(ask, s.image)
	s.revoke()
	s.await("the end of the credential", func() bool { return !s.works(first) })
	s.await("another lease", func() bool { return s.reading(200) > 1 })
	// It is at Vault that it was seen: the agent has it soon.
	var second login
	s.await("the new credential", func() bool { second = s.answer(ask, s.image); return second != first })
	if !s.works(second) || s.leases() != 1 || s.logins(200) != 2 {
		t.Errorf("the new credential works: %t; %d leases, want 1:%s", s.works(second), s.leases(), s.asked())
	}
}

// TestWhatVaultLentIsGivenBack ends the agent, before and after the configuration is changed so that the provider is not for the images any more, and has the answers forgotten: each time the credential ends at Vault. A pull that
// has just begun may be using it when the configuration changes, so that it is then left alone for some minutes, but for the end of the agent.
func TestWhatVaultLentIsGivenBack(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(s *vaultScene, ask asker, stop func()){
		"when the agent ends": func(_ *vaultScene, _ asker, stop func()) { stop() },
		"when the configuration does not want it any more": func(s *vaultScene, ask asker, stop func()) {
			s.provider["matchImages"] = []string{vaultOther}
			s.brokerConfig(nil)
			if _, err := ask(s.Context(), s.image, puller{}); err == nil { // the agent sees a change when it is asked
				s.Error("there is an answer all the same")
			}
			if s.leases() != 1 {
				s.Error("the lease was ended beneath pulls")
			}
			stop()
		},
		"when it is forgotten": func(s *vaultScene, _ asker, _ func()) {
			if r := s.run("", path(program.Broker), "forget", "--all"); r.code != 0 {
				s.Fatalf("forget: %s", r.said)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newVaultScene(t)
			secret := s.lent(time.Hour)
			secret["matchImages"] = []string{vaultHost + "/team"} // so that many answers share the lease
			s.secrets(secret)
			ask, stop := s.throughAgentUntil()
			answers := s.pullAll(ask, vaultHost)
			if len(answers) != 1 || !s.works(answers[0]) {
				t.Fatalf("%d answers", len(answers))
			}
			end(s, ask, stop)
			s.await("the end of the credential", func() bool { return !s.works(answers[0]) })
			if n := s.leases(); n != 0 {
				t.Errorf("%d leases are left", n)
			}
		})
	}
}

// TestTheAgentGivesItsLoginBack ends an agent whose backend has read a KV secret, and keeps the login for the next one.
func TestTheAgentGivesItsLoginBack(t *testing.T) {
	t.Parallel()
	s := newVaultScene(t)
	s.secrets(s.kept())
	ask, stop := s.throughAgentUntil()
	s.answer(ask, s.image)
	if n := s.gaveBack(); n != 0 {
		t.Errorf("%d logins were given back while the agent runs", n)
	}
	stop()
	if logins, back := s.logins(200), s.gaveBack(); logins != 1 || back != 1 {
		t.Errorf("%d logins, of which %d were given back, want 1 and 1", logins, back)
	}
}
