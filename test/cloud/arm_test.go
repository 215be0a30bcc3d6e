package cloud

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestResourceManager is about who may look at machines, scale sets and identities, and what it sees.
func TestResourceManager(t *testing.T) {
	c := New(t)
	tenant := c.AddEntraTenant(EntraTenant{}).ID
	user := ManagedIdentity{}
	alone, scaled := c.AzureInstanceIn(tenant, ManagedIdentity{System: true}, user), c.AzureScaleSetInstance(tenant, "pool", user)
	foreign := c.AzureInstance(user)
	reader := c.AddServicePrincipal(tenant, ServicePrincipal{Secrets: []string{"s3cret"}})
	stranger := c.AddServicePrincipal(tenant, ServicePrincipal{Secrets: []string{"s3cret"}})
	for _, a := range []*AzureInstance{alone, scaled, foreign} {
		c.GrantAzureReader(a.Compute().SubscriptionID, reader.ObjectID)
	}
	token := func(p ServicePrincipal, resource string) string {
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {p.ClientID}, "client_secret": {"s3cret"}, "scope": {resource + "/.default"}}
		a := c.send(t, http.MethodPost, "https://login.microsoftonline.com/"+tenant+"/oauth2/v2.0/token", form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
		if a.status != http.StatusOK {
			t.Fatal(a.fields)
		}
		return a.text("access_token")
	}
	good := token(reader, "https://management.core.windows.net/")
	under := func(a *AzureInstance, resource string) string {
		return "/subscriptions/" + a.Compute().SubscriptionID + "/resourceGroups/test/providers/" + resource + "?api-version=2022-03-01"
	}
	machine, scaleSet := under(alone, "Microsoft.Compute/virtualMachines/node-1"), under(scaled, "Microsoft.Compute/virtualMachineScaleSets/pool")
	look := func(path, token string) googleAnswer {
		return c.send(t, http.MethodGet, "https://management.azure.com"+path, "", "Authorization", "Bearer "+token)
	}
	a := look(machine, good)
	if a.status != http.StatusOK || a.text("id") != alone.Compute().ResourceID || a.text("location") != "westeurope" || a.text("identity.type") != "SystemAssigned, UserAssigned" || a.text("identity.principalId") != alone.Identities()[0].ObjectID {
		t.Errorf("a machine: %d %v", a.status, a.fields)
	}
	assigned := func(a googleAnswer, id string) map[string]any {
		identity, _ := a.fields["identity"].(map[string]any)
		all, _ := identity["userAssignedIdentities"].(map[string]any)
		one, _ := all[id].(map[string]any)
		return one
	}
	if one := assigned(a, alone.Identities()[1].ResourceID); one["principalId"] != alone.Identities()[1].ObjectID {
		t.Errorf("its identity: %v", one)
	}
	if r := c.last(t); r.Service != "azure-arm" || r.Operation != "Microsoft.Compute/virtualMachines/read" || r.Principal != reader.ClientID {
		t.Errorf("%+v", r)
	}
	id := scaled.Identities()[0]
	if a := look(scaleSet, good); a.status != http.StatusOK || a.text("name") != "pool" || assigned(a, id.ResourceID) == nil || len(assigned(a, id.ResourceID)) != 0 {
		t.Errorf("a scale set: %d %v", a.status, a.fields)
	}
	if a := look(id.ResourceID+"?api-version=2023-01-31", good); a.status != http.StatusOK || a.text("properties.principalId") != id.ObjectID || a.text("properties.clientId") != id.ClientID {
		t.Errorf("an identity: %d %v", a.status, a.fields)
	}
	if a := look(under(scaled, "Microsoft.ManagedIdentity/userAssignedIdentities"), good); a.status != http.StatusOK || len(a.fields["value"].([]any)) != 1 {
		t.Errorf("all identities: %d %v", a.status, a.fields)
	}
	for name, test := range map[string]struct{ path, token, want string }{
		"in other letters":       {strings.ToUpper(strings.Split(machine, "?")[0]) + "?api-version=2022-03-01", good, "200 "},
		"no version":             {strings.Split(machine, "?")[0], good, "400 MissingApiVersionParameter"},
		"a version that is none": {strings.Split(machine, "?")[0] + "?api-version=x", good, "400 InvalidApiVersionParameter"},
		"another machine":        {under(alone, "Microsoft.Compute/virtualMachines/node-2"), good, "404 ResourceNotFound"},
		"no scale set":           {under(alone, "Microsoft.Compute/virtualMachineScaleSets/pool"), good, "404 ResourceNotFound"},
		"another group":          {strings.Replace(machine, "/test/", "/other/", 1), good, "404 ResourceGroupNotFound"},
		"another subscription":   {strings.Replace(machine, alone.Compute().SubscriptionID, newUUID(), 1), good, "404 SubscriptionNotFound"},
		"no subscription":        {strings.Replace(machine, alone.Compute().SubscriptionID, "x", 1), good, "400 InvalidSubscriptionId"},
		"another tenant's":       {under(foreign, "Microsoft.Compute/virtualMachines/node-1"), good, "401 InvalidAuthenticationTokenTenant"},
		"something else":         {"/subscriptions", good, "404 InvalidResourceType"},
		"without the role":       {machine, token(stranger, "https://management.azure.com"), "403 AuthorizationFailed"},
		"for registries":         {machine, token(reader, "https://containerregistry.azure.net"), "401 InvalidAuthenticationTokenAudience"},
		"no token":               {machine, "x", "401 InvalidAuthenticationToken"},
		"forged":                 {machine, good[:len(good)-8] + "AAAAAAAA", "401 InvalidAuthenticationToken"},
	} {
		t.Run(name, func(t *testing.T) {
			if a := look(test.path, test.token); statusText(a.status)+" "+a.text("error.code") != test.want {
				t.Errorf("%d %v, not %s", a.status, a.fields, test.want)
			}
		})
	}
	if a := c.send(t, http.MethodGet, "https://management.azure.com"+machine, ""); a.text("error.code") != "AuthenticationFailed" || a.header.Get("WWW-Authenticate") == "" {
		t.Errorf("without a token: %v", a.fields)
	}
	c.SetClockOffset(2 * time.Hour)
	if a := look(machine, good); a.text("error.code") != "ExpiredAuthenticationToken" {
		t.Errorf("two hours later: %v", a.fields)
	}
	c.SetClockOffset(0)
	c.Fail(Fault{Service: "azure-arm", Times: 1})
	if a := look(machine, good); a.status != http.StatusTooManyRequests {
		t.Errorf("a fault: %v", a.fields)
	}
	c.RemoveServicePrincipal(tenant, reader.ClientID)
	if a := look(machine, good); a.status != http.StatusUnauthorized {
		t.Errorf("when it is no more: %v", a.fields)
	}
}
