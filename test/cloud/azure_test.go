package cloud

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

// imds asks a metadata service for a token.
func (*Cloud) imds(t testing.TB, a *AzureInstance, query string) googleAnswer {
	t.Helper()
	return sendBy(t, &http.Client{}, http.MethodGet, a.URL()+"/metadata/identity/oauth2/token?api-version=2018-02-01&"+query, "", "Metadata", "true")
}

func TestAzureInstanceWithoutItsIdentity(t *testing.T) {
	c := New(t)
	a := c.AzureInstance(ManagedIdentity{})
	id := a.Identities()[0]
	c.AddServicePrincipal(a.Tenant(), ServicePrincipal{ClientID: id.ClientID, Disabled: true})
	if answer := c.imds(t, a, "resource="+registryAudience); answer.status != 401 || !strings.HasPrefix(answer.text("error_description"), "AADSTS7000112: ") {
		t.Errorf("disabled: %d, %v", answer.status, answer.fields)
	}
	c.AddServicePrincipal(a.Tenant(), ServicePrincipal{ClientID: id.ClientID})
	if answer := c.imds(t, a, "resource="+registryAudience); answer.status != 200 {
		t.Errorf("enabled again: %d, %v", answer.status, answer.fields)
	}
	c.RemoveServicePrincipal(a.Tenant(), id.ClientID)
	if answer := c.imds(t, a, "resource="+registryAudience); answer.status != 400 || answer.text("error") != "unauthorized_client" {
		t.Errorf("removed: %d, %v", answer.status, answer.fields)
	}
}

func TestAzureInstanceThatDoesNotAnswer(t *testing.T) {
	ask := func(t *testing.T, a *AzureInstance, limit time.Duration) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		address, _ := strings.CutPrefix(a.Environ()[0], "AZURE_POD_IDENTITY_AUTHORITY_HOST=")
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(r)
		if err == nil {
			_ = answer.Body.Close()
		}
		return err
	}
	t.Run("absent", func(t *testing.T) {
		c := New(t)
		a := c.AzureInstance(ManagedIdentity{})
		a.Absent()
		if err := ask(t, a, 200*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if n := len(c.Requests()); runtime.GOOS == "linux" && n != 0 {
			t.Errorf("%d requests arrived", n)
		}
	})
	t.Run("refused", func(t *testing.T) {
		a := New(t).AzureInstance(ManagedIdentity{})
		a.Refuse()
		if err := ask(t, a, time.Minute); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Error(err)
		}
	})
}
