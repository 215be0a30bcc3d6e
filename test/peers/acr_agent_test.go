//go:build linux

package peers

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/peers/internal/program"
)

const (
	acrHost   = "contoso.azurecr.io"
	acrOther  = "fabrikam.azurecr.io"
	acrImages = 50 // of each
	// acrIssuer is the cluster.
	acrIssuer = "https://oidc.prod-aks.azure.com/cluster"
	// The annotations of a service account that say whom its pods pull as.
	acrClientID = "kubernetes.azure.com/acr-client-id"
	acrTenantID = "kubernetes.azure.com/acr-tenant-id"
	// acrChallenged is the status with which a registry says how it wants to be logged in to.
	acrChallenged = http.StatusUnauthorized
)

func acrImage(host string, n int) string { return fmt.Sprintf("%s/team/app-%d", host, n) }

// azureScene is a scene whose broker has a provider for Azure's registries, of which there are two in one tenant.
type azureScene struct {
	*scene
	tenant string
}

func newAzureScene(t *testing.T) *azureScene {
	t.Helper()
	s := &azureScene{scene: newScene(t)}
	s.tenant = s.AddEntraTenant(cloud.EntraTenant{}).ID
	var repositories []string
	for n := range acrImages {
		repositories = append(repositories, strings.TrimPrefix(acrImage("", n), "/"))
	}
	for _, host := range []string{acrHost, acrOther} {
		s.AddAzureRegistry(cloud.AzureRegistry{Host: host, Tenant: s.tenant, Repositories: repositories})
	}
	s.image = acrImage(acrHost, 0)
	s.provider = map[string]any{"name": "acr", "backend": "acr", "matchImages": []string{"*.azurecr.io"}, "inheritEnv": []string{"AZURE_*"}}
	s.timeout = "55s" // longer than the cloud is made to throttle, on a machine with other work too
	return s
}

// mayPull lets a principal pull from both registries.
func (s *azureScene) mayPull(objectID string) {
	for _, host := range []string{acrHost, acrOther} {
		s.GrantAcrPull(host, objectID)
	}
}

// machine has the node pull as its machine, whose object ID it gives.
func (s *azureScene) machine() string {
	m := s.AzureInstanceIn(s.tenant, cloud.ManagedIdentity{System: true})
	s.add(m.Environ()...)
	s.mayPull(m.Identities()[0].ObjectID)
	return m.Identities()[0].ObjectID
}

// application has the node pull as an application with a secret.
func (s *azureScene) application() {
	const secret = "Q8~not-a-real-secret-of-the-application"
	p := s.AddServicePrincipal(s.tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
	s.mayPull(p.ObjectID)
	s.settings = map[string]any{"tenantID": s.tenant, "clientID": p.ClientID, "clientSecretFile": s.write("secret", secret, 0o600)}
}

// pod makes a pod that pulls as an application of its service account's own, and gives that one's object ID too.
func (s *azureScene) pod(account string) (puller, string) {
	subject := "system:serviceaccount:shop:" + account
	p := s.AddServicePrincipal(s.tenant, cloud.ServicePrincipal{Federated: []cloud.FederatedCredential{{Issuer: acrIssuer, Subject: subject}}})
	s.mayPull(p.ObjectID)
	const audience = "api://AzureADTokenExchange"
	s.provider["tokenAttributes"] = map[string]any{"serviceAccountTokenAudience": audience, "optionalServiceAccountAnnotationKeys": []string{acrClientID, acrTenantID}}
	token := s.AddIssuer(acrIssuer).Token(map[string]any{
		"aud": []string{audience}, "sub": subject,
		"kubernetes.io": map[string]any{"namespace": "shop", "serviceaccount": map[string]any{"name": account, "uid": "uid of " + account}},
	})
	return puller{token, map[string]string{acrClientID: p.ClientID, acrTenantID: s.tenant}}, p.ObjectID
}

// exchanged counts the exchanges at a registry that ended with a status.
func (s *azureScene) exchanged(host string, status int) (n int) {
	for _, r := range s.Requests() {
		if r.Host == host && r.Operation == "exchange" && r.Status == status {
			n++
		}
	}
	return n
}

// await waits until something has happened. Its patience is no measure of the machine's speed.
func (s *azureScene) await(what string, happened func() bool) {
	s.Helper()
	deadline, tick := time.After(5*time.Minute), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for !happened() {
		select {
		case <-tick.C:
		case <-deadline:
			s.Fatalf("%s: not seen; %+v", what, s.Requests())
		}
	}
}

// pullAll asks for all images of a registry at once, and pulls them.
func (s *azureScene) pullAll(ask asker, host string) {
	s.Helper()
	s.atOnce(acrImages, func(n int) error {
		l, err := ask(s.Context(), acrImage(host, n), puller{})
		if err != nil {
			return err
		}
		return s.Pull(acrImage(host, n), l.Username, l.Password)
	})
}

// TestFiftyImagesOfOneAzureRegistryAreOneExchange starts as many pods at once as a node that comes up.
func TestFiftyImagesOfOneAzureRegistryAreOneExchange(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		given func(*azureScene)
		from  string // whom the Entra token is from
	}{
		"the machine":    {func(s *azureScene) { s.machine() }, "azure-metadata"},
		"an application": {(*azureScene).application, "entra"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newAzureScene(t)
			c.given(s)
			s.pullAll(s.throughAgent(), acrHost)
			if tokens, challenges, exchanges := s.asked(c.from, "token", 200), s.asked("acr", "challenge", acrChallenged), s.exchanged(acrHost, 200); tokens != 1 || challenges != 1 || exchanges != 1 {
				t.Errorf("%d Entra tokens, %d challenges and %d exchanges, want one of each", tokens, challenges, exchanges)
			}
		})
	}
}

// TestTwoPodsAndTheNodeNeverMixInAzure has two pods and the node ask for the same images at once, again and again: each gets its own identity's token.
func TestTwoPodsAndTheNodeNeverMixInAzure(t *testing.T) {
	t.Parallel()
	s := newAzureScene(t)
	type who struct {
		puller
		objectID string
	}
	everybody := []who{{objectID: s.machine()}}
	for _, account := range []string{"cart", "till"} {
		by, objectID := s.pod(account)
		everybody = append(everybody, who{by, objectID})
	}
	ask := s.throughAgent()
	s.atOnce(60, func(i int) error {
		asks, image := everybody[i%len(everybody)], acrImage(acrHost, i/len(everybody)%4)
		l, err := ask(t.Context(), image, asks.puller)
		if err != nil {
			return err
		}
		if got := subjectOf(l.Password); got != asks.objectID {
			return fmt.Errorf("a token of %q, want one of %s", got, asks.objectID)
		}
		return s.Pull(image, l.Username, l.Password)
	})
	// One each, so that it was the agent that had to keep them apart.
	if pods, node, exchanges := s.asked("entra", "token", 200), s.asked("azure-metadata", "token", 200), s.exchanged(acrHost, 200); pods != 2 || node != 1 || exchanges != 3 {
		t.Errorf("%d Entra tokens for pods and %d for the node, and %d exchanges, want 2, 1 and 3", pods, node, exchanges)
	}
}

// subjectOf is whose a registry's token is, as it says; whether it says the truth, a pull tells.
func subjectOf(token string) string {
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	data, err := base64.RawURLEncoding.DecodeString(payload)
	var claims struct{ Sub string }
	if err != nil || json.Unmarshal(data, &claims) != nil {
		return ""
	}
	return claims.Sub
}

// TestEverybodyWaitsForWhatIsThrottledInAzure: whoever of those that a login asks says 429, is left alone for as long as it says, by all who wait; then one of them asks for all.
func TestEverybodyWaitsForWhatIsThrottledInAzure(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		given              func(*azureScene)
		service, operation string
		success            int
	}{
		"the registry's exchange":  {func(s *azureScene) { s.machine() }, "acr", "exchange", 200},
		"the registry's challenge": {func(s *azureScene) { s.machine() }, "acr", "challenge", acrChallenged},
		"the metadata service":     {func(s *azureScene) { s.machine() }, "azure-metadata", "token", 200},
		"Entra":                    {(*azureScene).application, "entra", "token", 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newAzureScene(t)
			c.given(s)
			ask := s.throughAgent()
			const throttled = 3 * time.Second
			s.Fail(cloud.Fault{Service: c.service, Operation: c.operation, Times: 1, RetryAfter: throttled})
			began := time.Now()
			s.pullAll(ask, acrHost)
			if took := time.Since(began); took < throttled {
				t.Errorf("all have their answer after %s, and nobody was to ask again within %s", took, throttled)
			}
			if refused, answered := s.asked(c.service, c.operation, 429), s.asked(c.service, c.operation, c.success); refused != 1 || answered != 1 {
				t.Errorf("%d requests were throttled and %d answered, want one of each: %+v", refused, answered, s.Requests())
			}
		})
	}
}

// TestAThrottledRegistryHoldsUpNoOther asks for images of a second registry while who asks for one of the first has to wait.
func TestAThrottledRegistryHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	s := newAzureScene(t)
	s.machine()
	ask := s.throughAgent()
	s.Fail(cloud.Fault{Service: "acr", Operation: "exchange", Times: 1, RetryAfter: 40 * time.Second})
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	first := make(chan error, 1)
	go func() {
		_, err := ask(ctx, acrImage(acrHost, 0), puller{})
		first <- err
	}()
	s.await("the throttled exchange", func() bool { return s.exchanged(acrHost, 429) == 1 })
	s.pullAll(ask, acrOther)
	select {
	case err := <-first:
		t.Fatalf("who asked first did not wait, so that this shows nothing: %v", err)
	default:
	}
	giveUp()
	if err := <-first; err == nil {
		t.Error("who asked first had an answer after all")
	}
	if throttled, again, other := s.exchanged(acrHost, 429), s.exchanged(acrHost, 200), s.exchanged(acrOther, 200); throttled != 1 || again != 0 || other != 1 {
		t.Errorf("the first registry was asked %d times and gave %d tokens, the second gave %d, want 1, 0 and 1", throttled+again, again, other)
	}
	if n := s.asked("azure-metadata", "token", 200); n != 1 {
		t.Errorf("%d Entra tokens, want one for both registries", n)
	}
}

// TestTheAgentServesOnWithoutEntra takes Entra away after the first answer. The registry that has given one is not asked again, and one that has not takes the Entra token that there is.
func TestTheAgentServesOnWithoutEntra(t *testing.T) {
	t.Parallel()
	s := newAzureScene(t)
	s.application()
	ask := s.throughAgent()
	first, err := ask(t.Context(), s.image, puller{})
	if err != nil {
		t.Fatal(err)
	}
	s.Fail(cloud.Fault{Service: "entra", Reset: true})
	for n := range 5 {
		l, err := ask(t.Context(), acrImage(acrHost, n), puller{})
		if err != nil {
			t.Fatal(err)
		}
		if l != first || s.Pull(acrImage(acrHost, n), l.Username, l.Password) != nil {
			t.Errorf("image %d: another answer than before, or one that is of no use", n)
		}
	}
	s.pullAll(ask, acrOther)
	if r := s.run("", path(program.Broker), "forget", "--all"); r.code != 0 {
		t.Fatalf("forget: %s", r.said)
	}
	if _, err := ask(t.Context(), s.image, puller{}); err == nil {
		t.Error("there is an answer from nowhere: Entra is not away, and this shows nothing")
	}
}

// TestTheAgentRenewsAnAzureTokenBeforeItEnds lets the registry fail when its token is to be renewed, and then succeed, while nobody asks the agent for anything. The token lives for four minutes, since the
// backend gives one out for half of its life, and the agent asks ahead of need only for one that has a minute and a half at least: this takes about two and a half minutes, and would not notice being slow.
func TestTheAgentRenewsAnAzureTokenBeforeItEnds(t *testing.T) {
	t.Parallel()
	s := newAzureScene(t)
	s.machine()
	s.SetRefreshTokenLife(acrHost, 4*time.Minute)
	ask := s.throughAgent()
	answer := func() login {
		t.Helper()
		l, err := ask(t.Context(), s.image, puller{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Pull(s.image, l.Username, l.Password); err != nil {
			t.Fatal(err)
		}
		return l
	}
	first := answer()
	s.SetRefreshTokenLife(acrHost, 3*time.Hour)
	s.Fail(cloud.Fault{Service: "acr", Status: 503})
	s.await("an attempt to renew", func() bool { return s.asked("acr", "challenge", 503) > 0 })
	if answer() != first {
		t.Error("another answer while the registry is away")
	}
	s.Heal()
	s.await("the renewal", func() bool { return s.exchanged(acrHost, 200) > 1 })
	// It is at the cloud that the renewal was seen: the agent has it soon.
	s.await("the new token", func() bool { return answer() != first })
	if tokens, exchanges := s.asked("azure-metadata", "token", 200), s.exchanged(acrHost, 200); tokens != 1 || exchanges != 2 {
		t.Errorf("%d Entra tokens and %d exchanges, want 1 and 2", tokens, exchanges)
	}
}
