package acr

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// annotated are a service account's annotations.
func annotated(client, tenant string) map[string]string {
	annotations := map[string]string{}
	if client != "" {
		annotations[clientIDAnnotation] = client
	}
	if tenant != "" {
		annotations[tenantIDAnnotation] = tenant
	}
	return annotations
}

// TestPods: who pulls, by what the settings and the service account say.
func TestPods(t *testing.T) {
	const node, pod = "node", "pod"
	for name, test := range map[string]struct {
		change func(cfg *Config, client, tenant string)
		// annotate gives the annotations, and bare leaves the token out.
		annotate func(client, tenant string) map[string]string
		bare     bool
		want     string // who pulls; else the error
		kind     backends.Kind
	}{
		"annotated":                   {nil, annotated, false, pod, 0},
		"not annotated":               {nil, func(string, string) map[string]string { return nil }, false, node, 0},
		"no token":                    {nil, annotated, true, node, 0},
		"off":                         {func(cfg *Config, _, _ string) { cfg.PodIdentity = settings.PodIdentityOff }, annotated, false, node, 0},
		"required":                    {func(cfg *Config, _, _ string) { cfg.PodIdentity = settings.PodIdentityRequire }, annotated, false, pod, 0},
		"required, and no token":      {func(cfg *Config, _, _ string) { cfg.PodIdentity = settings.PodIdentityRequire }, annotated, true, "podIdentity is Require, and the request carries no service account token", refused},
		"required, and not annotated": {func(cfg *Config, _, _ string) { cfg.PodIdentity = settings.PodIdentityRequire }, func(string, string) map[string]string { return nil }, false, "nothing says whom the pod pulls as: annotate its service account with kubernetes.azure.com/acr-client-id", refused},
		"the settings say whom":       {func(cfg *Config, client, tenant string) { cfg.PodClientID, cfg.PodTenantID = client, tenant }, func(string, string) map[string]string { return nil }, false, pod, 0},
		"the annotation before them":  {func(cfg *Config, _, _ string) { cfg.PodClientID, cfg.PodTenantID = aClient, aTenant }, annotated, false, pod, 0},
		"the node's tenant":           {nil, func(client, _ string) map[string]string { return annotated(client, "") }, false, pod, 0},
		"no tenant":                   {func(cfg *Config, _, _ string) { cfg.Identity = Identity{Anonymous: true} }, func(client, _ string) map[string]string { return annotated(client, "") }, false, "nothing says which tenant the pod's identity", refused},
		"a client that is no UUID":    {nil, func(_, tenant string) map[string]string { return annotated("../../evil", tenant) }, false, `the annotation kubernetes.azure.com/acr-client-id is "../../evil": want a UUID`, refused},
		"a tenant that is no UUID":    {nil, func(client, _ string) map[string]string { return annotated(client, "evil.example") }, false, `the annotation kubernetes.azure.com/acr-tenant-id is "evil.example": want a UUID`, refused},
		"a tenant that leads elsewhere": {nil, func(client, _ string) map[string]string {
			return annotated(client, "11111111-2222-3333-4444-55555555555/..")
		}, false, "want a UUID", refused},
		"somebody else":     {nil, func(_, tenant string) map[string]string { return annotated(aClient, tenant) }, false, "AADSTS700016", refused},
		"an anonymous node": {func(cfg *Config, _, _ string) { cfg.Identity = Identity{Anonymous: true} }, annotated, false, pod, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c, tenant := setUp(t)
			own := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
			theirs := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: federated("team-a", "builder")})
			cfg := Config{Identity: Identity{TenantID: tenant, ClientID: own.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}}
			if test.change != nil {
				test.change(&cfg, theirs.ClientID, tenant)
			}
			b := backendFor(t, c, cfg)
			req := backends.Request{Image: image, Token: podToken(c, "team-a", "builder"), Annotations: test.annotate(theirs.ClientID, tenant)}
			if test.bare {
				req.Token = ""
			}
			who := map[string]string{node: own.ObjectID, pod: theirs.ObjectID}[test.want]
			if who == "" {
				_, err := b.Credentials(t.Context(), req)
				failed(t, err, test.kind, test.want)
				return
			}
			c.GrantAcrPull(host, who)
			pull(t, c, b, req)
		})
	}
}

func TestAPodWithoutACredentialIsToldWhichOne(t *testing.T) {
	c, tenant := setUp(t)
	theirs := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: federated("team-a", "other")})
	_, err := backendFor(t, c, Config{}).Credentials(t.Context(), backends.Request{Image: image, Token: podToken(c, "team-a", "builder"), Annotations: annotated(theirs.ClientID, tenant)})
	failed(t, err, refused, "AADSTS70021", "federated-credential create --id "+theirs.ClientID, `"issuer":"`+clusterIssuer+`"`, `"subject":"system:serviceaccount:team-a:builder"`, `"audiences":["api://AzureADTokenExchange"]`, "az identity federated-credential create")
}

func TestAPodsTokenThatIsNone(t *testing.T) {
	c, tenant := setUp(t)
	_, err := backendFor(t, c, Config{}).Credentials(t.Context(), backends.Request{Image: image, Token: planted, Annotations: annotated(aClient, tenant)})
	failed(t, err, refused, "the pod's service account token: it is no JWT")
}

// TestPodsNeverMix: many pods and the node ask at once, and each gets its own.
func TestPodsNeverMix(t *testing.T) {
	c, tenant := setUp(t)
	own := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
	c.GrantAcrPull(host, own.ObjectID)
	b := backendFor(t, c, Config{Identity: Identity{TenantID: tenant, ClientID: own.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}})
	const pods = 8
	requests := []backends.Request{{Image: image}}
	for i := range pods {
		account := fmt.Sprint("pod", i)
		p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: federated("team-a", account)})
		c.GrantAcrPull(host, p.ObjectID)
		requests = append(requests, backends.Request{Image: image, Token: podToken(c, "team-a", account), Annotations: annotated(p.ClientID, tenant)})
	}
	var wait sync.WaitGroup
	var mu sync.Mutex
	got := map[string]int{}
	for range 4 {
		for i, req := range requests {
			wait.Go(func() {
				r, err := b.Credentials(t.Context(), req)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				password := string(r.Credentials[0].Password)
				if before, ok := got[password]; ok && before != i {
					t.Errorf("%d and %d have one password", before, i)
				}
				got[password] = i
			})
		}
	}
	wait.Wait()
	exchanges := 0
	for _, r := range c.Requests() {
		if r.Operation == "exchange" {
			exchanges++
		}
	}
	if len(got) != pods+1 || exchanges != pods+1 {
		t.Errorf("%d passwords by %d exchanges for %d identities", len(got), exchanges, pods+1)
	}
}

// TestAnotherPodsTokenIsAnotherIdentity though all else is equal: what is kept for one is not given for the other.
func TestAnotherPodsTokenIsAnotherIdentity(t *testing.T) {
	c, tenant := setUp(t)
	theirs := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: federated("team-a", "builder")})
	c.GrantAcrPull(host, theirs.ObjectID)
	b := backendFor(t, c, Config{})
	pull(t, c, b, backends.Request{Image: image, Token: podToken(c, "team-a", "builder"), Annotations: annotated(theirs.ClientID, tenant)})
	_, err := b.Credentials(t.Context(), backends.Request{Image: image, Token: podToken(c, "team-b", "thief"), Annotations: annotated(theirs.ClientID, tenant)})
	failed(t, err, refused, "AADSTS70021")
	if !strings.Contains(err.Error(), "team-b:thief") {
		t.Errorf("it does not say whose: %v", err)
	}
}
