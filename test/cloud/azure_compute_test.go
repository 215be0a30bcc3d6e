package cloud

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestAzureCompute is about what the metadata service tells of the machine, and that the tokens of its identities say the same.
func TestAzureCompute(t *testing.T) {
	c := New(t)
	tenant := c.AddEntraTenant(EntraTenant{}).ID
	alone, scaled := c.AzureInstanceIn(tenant, ManagedIdentity{System: true}), c.AzureScaleSetInstance(tenant, "aks-pool", ManagedIdentity{})
	get := func(t *testing.T, url string, metadata bool, into any) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if metadata {
			r.Header.Set("Metadata", "true")
		}
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		if err := json.Unmarshal(body, into); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		return resp.StatusCode
	}
	const path = "/metadata/instance/compute?api-version=2021-02-01"
	for name, a := range map[string]*AzureInstance{"alone": alone, "in a scale set": scaled} {
		t.Run(name, func(t *testing.T) {
			var told, missing AzureCompute
			if status := get(t, a.URL()+path+"&format=json", true, &told); status != http.StatusOK || told != a.Compute() || told.SubscriptionID == "" {
				t.Errorf("%d, %+v", status, told)
			}
			if r := c.last(t); r.Service != "azure-metadata" || r.Operation != "compute" || r.Status != 200 {
				t.Errorf("%+v", r)
			}
			where := "/subscriptions/" + told.SubscriptionID + "/resourceGroups/" + told.ResourceGroupName + "/providers/Microsoft.Compute/virtualMachines/" + told.Name
			if told.ResourceID != where || (told.ScaleSet == "aks-pool") != (a == scaled) || a == scaled && !strings.HasPrefix(told.Name, "aks-pool_") {
				t.Errorf("%+v", told)
			}
			for url, metadata := range map[string]bool{path: false, "/metadata/instance/compute": true, "/metadata/instance/compute?api-version=x": true, path + "&format=text": true} {
				if status := get(t, a.URL()+url, metadata, &missing); status != http.StatusBadRequest {
					t.Errorf("%s: %d", url, status)
				}
			}
			var token struct {
				Text string `json:"access_token"`
			}
			get(t, a.URL()+"/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://management.azure.com/", true, &token)
			claims, err := c.verifyToken(token.Text, a.Issuer(false))
			claim := "xms_mirid"
			if a == scaled { // the identity is a resource of its own
				claim = "xms_az_rid"
			}
			if err != nil || claims[claim] != strings.Replace(where, "resourceGroups", "resourcegroups", 1) || (claims["xms_az_rid"] == nil) == (a == scaled) {
				t.Errorf("%v, %v", claims, err)
			}
		})
	}
}
