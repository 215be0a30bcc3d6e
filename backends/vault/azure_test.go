package vault

import (
	"slices"
	"strings"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/test/cloud"
)

func TestAzureSettings(t *testing.T) {
	const id = "11111111-2222-3333-4444-555555555555"
	for name, tt := range map[string]struct {
		a    *Azure
		want map[string]string
	}{
		"none":                        {nil, nil},
		"empty ones":                  {&Azure{}, nil},
		"all of the machine's":        {&Azure{Resource: "api://vault", ClientID: id, Endpoint: "http://127.0.0.1:8080"}, nil},
		"a token":                     {&Azure{Resource: "api://vault", TokenFile: "/run/token"}, nil},
		"an id that is none":          {&Azure{ClientID: "a", ResourceID: ""}, map[string]string{"auth.x.clientID": "want a UUID"}},
		"a resource's id that is one": {&Azure{ResourceID: id}, map[string]string{"auth.x.resourceID": "/subscriptions/"}},
		"two ids":                     {&Azure{ClientID: id, ObjectID: id}, map[string]string{"auth.x": "more than one of clientID, objectID and resourceID"}},
		"an endpoint that is no URL":  {&Azure{Endpoint: "127.0.0.1"}, map[string]string{"auth.x.endpoint": "want a URL"}},
		"a resource with a space":     {&Azure{Resource: "api://a b"}, map[string]string{"auth.x.resource": "printable ASCII"}},
		"a token, somewhere":          {&Azure{TokenFile: "token"}, map[string]string{"auth.x.tokenFile": "absolute path"}},
		"a token, and an identity":    {&Azure{TokenFile: "/run/token", ObjectID: id}, map[string]string{"auth.x.tokenFile": "remove clientID, objectID, resourceID and endpoint, or tokenFile"}},
	} {
		t.Run(name, func(t *testing.T) { finds(t, problemsWith(t, tt.a.validate), tt.want) })
	}
}

// TestAzure: the token is a managed identity's, and says itself on which machine it is, as Vault compares it with the rest.
func TestAzure(t *testing.T) {
	c := aCloud(t)
	tenant := c.AddEntraTenant(cloud.EntraTenant{}).ID
	alone := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true}, cloud.ManagedIdentity{})
	scaled := c.AzureScaleSetInstance(tenant, "aks-pool", cloud.ManagedIdentity{}, cloud.ManagedIdentity{})
	c.AddApplication(tenant, cloud.Application{URI: "api://vault"})
	for name, tt := range map[string]struct {
		a        *Azure
		m        *cloud.AzureInstance
		env      []string
		identity int
		audience string
	}{
		"without settings":              {nil, alone, alone.Environ(), 0, "https://management.azure.com/"},
		"by its address":                {&Azure{Endpoint: alone.URL() + "/"}, alone, nil, 0, "https://management.azure.com/"},
		"another identity":              {&Azure{ClientID: alone.Identities()[1].ClientID}, alone, alone.Environ(), 1, "https://management.azure.com/"},
		"in a scale set":                {&Azure{ObjectID: scaled.Identities()[1].ObjectID}, scaled, scaled.Environ(), 1, "https://management.azure.com/"},
		"for an application of Vault's": {&Azure{Resource: "api://vault", ResourceID: scaled.Identities()[0].ResourceID}, scaled, scaled.Environ(), 0, "api://vault"},
	} {
		t.Run(name, func(t *testing.T) {
			inEnv(t, tt.env...)
			log := heard(t)
			parameters, err := tt.a.parameters(t.Context(), "r")
			if err != nil {
				t.Fatal(err)
			}
			silent(t, log.String(), c.Secrets()...)
			token, _ := parameters["jwt"].(string)
			claims, err := webidentity.ParseClaims(token)
			if err != nil || claims.Issuer != tt.m.Issuer(false) || claims.ObjectID != tt.m.Identities()[tt.identity].ObjectID || !slices.Equal(claims.Audience, []string{tt.audience}) {
				t.Errorf("%+v, %v", claims, err)
			}
			machine := tt.m.Compute()
			want := map[string]any{"jwt": token, "subscription_id": machine.SubscriptionID, "resource_group_name": machine.ResourceGroupName, "vm_name": machine.Name}
			if tt.m == scaled {
				want["vmss_name"] = "aks-pool"
			}
			for name, value := range want {
				if parameters[name] != value || value == "" {
					t.Errorf("%s is %v", name, parameters[name])
				}
			}
			if len(parameters) != len(want) {
				t.Errorf("%d parameters", len(parameters))
			}
		})
	}
	t.Run("being updated for a while", func(t *testing.T) {
		c.Fail(cloud.Fault{Service: "azure-metadata", Operation: "compute", Times: 1, Status: 410})
		defer c.Heal()
		if parameters, err := (&Azure{Endpoint: alone.URL()}).parameters(t.Context(), "r"); err != nil || parameters["vm_name"] == "" {
			t.Error(err)
		}
	})
}

// TestAzureToken: one of a file says nothing of a machine.
func TestAzureToken(t *testing.T) {
	c := aCloud(t)
	tenant := c.AddEntraTenant(cloud.EntraTenant{}).ID
	m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true})
	got, err := (&Azure{Endpoint: m.URL()}).parameters(t.Context(), "r")
	if err != nil {
		t.Fatal(err)
	}
	token, _ := got["jwt"].(string)
	c.ForgetRequests()
	file := inFile(t, []byte(token+"\n"))
	parameters, err := (&Azure{TokenFile: file}).parameters(t.Context(), "r")
	if err != nil || len(parameters) != 1 || parameters["jwt"] != token || len(c.Requests()) > 0 {
		t.Errorf("%d parameters, %v, %+v", len(parameters), err, c.Requests())
	}
	pods := c.AddIssuer("https://cluster.example").Token(map[string]any{"aud": "api://AzureADTokenExchange", "sub": "system:serviceaccount:a:b"})
	for name, tt := range map[string]struct {
		a    Azure
		want no
	}{
		"for another resource":       {Azure{TokenFile: file, Resource: "api://vault"}, no{backends.KindMisconfigured, "auth.azure.tokenFile", []string{`not for "api://vault"`, "or set auth.azure.resource"}}},
		"one that Entra is to take":  {Azure{TokenFile: inFile(t, []byte(pods))}, no{backends.KindMisconfigured, "auth.azure.tokenFile", []string{`"api://AzureADTokenExchange"`, "logs in by auth.method jwt and its tokenFile"}}},
		"one that is none":           {Azure{TokenFile: inFile(t, []byte(planted))}, no{backends.KindMisconfigured, "auth.azure.tokenFile", []string{"no JWT"}}},
		"one that is not there":      {Azure{TokenFile: file + "x"}, no{backends.KindUnavailable, "", []string{"does not exist"}}},
		"one that is not there yet":  {Azure{TokenFile: inFile(t, nil)}, no{backends.KindUnavailable, "", []string{"it is empty"}}},
		"one that has expired since": {Azure{TokenFile: inFile(t, []byte(c.AddIssuer(m.Issuer(false)).Token(map[string]any{"aud": defaultResource, "exp": 1})))}, no{backends.KindUnavailable, "", []string{"it expired at"}}},
	} {
		t.Run(name, func(t *testing.T) {
			log := heard(t)
			parameters, err := tt.a.parameters(t.Context(), "r")
			tt.want.judge(t, parameters, err, log.String(), c.Secrets()...)
		})
	}
}

// TestAzureRefusals: why there is no token, or no machine, and what to do.
func TestAzureRefusals(t *testing.T) {
	c := aCloud(t)
	m, bare := c.AzureInstance(cloud.ManagedIdentity{System: true}), c.AzureInstance()
	several := c.AzureInstance(cloud.ManagedIdentity{}, cloud.ManagedIdentity{})
	google, gone := c.GoogleInstance(), c.AzureInstance()
	gone.Refuse()
	const other = "set auth.azure.tokenFile, or log in with another OIDC identity by auth.method jwt and its webIdentity or tokenFile"
	const which = "which machine this is, from Azure's metadata service: "
	for name, tt := range map[string]struct {
		a     Azure
		env   []string
		fault *cloud.Fault
		want  no
	}{
		"not on Azure":               {Azure{Endpoint: gone.URL()}, nil, nil, no{backends.KindUnavailable, "", []string{"is this machine on Azure", "If not, " + other}}},
		"on another cloud":           {Azure{Endpoint: google.URL()}, nil, nil, no{backends.KindMisconfigured, "auth.azure", []string{"is not it: " + other + " on a machine that is not on Azure"}}},
		"no identity":                {Azure{Endpoint: bare.URL()}, nil, nil, no{backends.KindRefused, "", []string{"no managed identity", "assign one"}}},
		"several":                    {Azure{Endpoint: several.URL()}, nil, nil, no{backends.KindMisconfigured, "auth.azure", []string{"say which by clientID, objectID or resourceID"}}},
		"another's":                  {Azure{Endpoint: m.URL(), ClientID: several.Identities()[0].ClientID}, nil, nil, no{backends.KindMisconfigured, "auth.azure", []string{"does not have the managed identity with client id"}}},
		"a resource that nobody has": {Azure{Endpoint: m.URL(), Resource: "api://vault"}, nil, nil, no{backends.KindMisconfigured, "auth.azure", []string{`no application "api://vault"`, "or set auth.azure.resource to one that there is"}}},
		"an address that is none":    {Azure{}, []string{"AZURE_POD_IDENTITY_AUTHORITY_HOST=127.0.0.1:80"}, nil, no{backends.KindMisconfigured, "auth.azure", []string{"AZURE_POD_IDENTITY_AUTHORITY_HOST"}}},
		"a service that is broken":   {Azure{Endpoint: m.URL()}, nil, &cloud.Fault{Operation: "token", Status: 500, Body: planted}, no{backends.KindUnavailable, "", []string{"HTTP status 500"}}},

		"the machine, broken":            {Azure{Endpoint: m.URL()}, nil, &cloud.Fault{Operation: "compute", Status: 500, Body: planted}, no{backends.KindUnavailable, "", []string{which, "busy, broken or being updated (HTTP status 500)"}}},
		"the machine, being updated":     {Azure{Endpoint: m.URL()}, nil, &cloud.Fault{Operation: "compute", Status: 410}, no{backends.KindUnavailable, "", []string{which, "HTTP status 410"}}},
		"the machine, cut off":           {Azure{Endpoint: m.URL()}, nil, &cloud.Fault{Operation: "compute", Reset: true}, no{backends.KindUnavailable, "", []string{which}}},
		"of one that gives only tokens":  {Azure{Endpoint: m.URL()}, nil, &cloud.Fault{Operation: "compute", Status: 404, Body: planted}, no{backends.KindMisconfigured, "auth.azure", []string{which, "tells nothing of a machine (HTTP status 404)", "put its token into auth.azure.tokenFile", "by auth.method jwt"}}},
		"of one that tells others":       {Azure{Endpoint: m.URL()}, nil, &cloud.Fault{Operation: "compute", Status: 200, Body: planted}, no{backends.KindMisconfigured, "auth.azure", []string{which, "tells nothing of a machine (HTTP status 200)"}}},
		"of one that tells no name":      {Azure{Endpoint: m.URL()}, nil, &cloud.Fault{Operation: "compute", Status: 200, Body: `{"subscriptionId":"11111111-2222-3333-4444-555555555555","resourceGroupName":"a"}`}, no{backends.KindMisconfigured, "auth.azure", []string{"tells nothing of a machine"}}},
		"of one that tells another form": {Azure{Endpoint: m.URL()}, nil, &cloud.Fault{Operation: "compute", Status: 200, Body: `{"subscriptionId":"` + planted + `","resourceGroupName":"a","name":"b"}`}, no{backends.KindMisconfigured, "auth.azure", []string{"tells nothing of a machine"}}},
	} {
		t.Run(name, func(t *testing.T) {
			inEnv(t, tt.env...)
			if tt.fault != nil {
				tt.fault.Service = "azure-metadata"
				c.Fail(*tt.fault)
				defer c.Heal()
			}
			log := heard(t)
			parameters, err := tt.a.parameters(t.Context(), "r")
			tt.want.judge(t, parameters, err, log.String(), c.Secrets()...)
		})
	}
	t.Run("the machine, at an address that is none", func(t *testing.T) {
		_, err := (&Azure{Endpoint: "127.0.0.1"}).machine(t.Context())
		if err == nil || !strings.Contains(err.Error(), "its address is none") {
			t.Error(err)
		}
	})
}
