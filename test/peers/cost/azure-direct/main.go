// Command azure-direct is Azure's own provider played by the shortest client that its SDK allows: acr-credential-provider is in no module that could be built here. It reads the kubelet's request, gets a
// token of the environment's application or of the machine's managed identity, exchanges it at the image's registry, and writes the kubelet's response: one process, one HTTP client, nothing kept, nothing checked.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/containers/azcontainerregistry"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "azure-direct:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if len(os.Args) > 1 { // only its start is wanted
		return nil
	}
	var request struct{ Image string }
	if err := json.NewDecoder(os.Stdin).Decode(&request); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	host, _, _ := strings.Cut(request.Image, "/")
	client := &http.Client{Transport: machine{http.DefaultTransport}}
	identity, err := credential(client)
	if err != nil {
		return err
	}
	token, err := identity.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{"https://containerregistry.azure.net/.default"}})
	if err != nil {
		return err
	}
	service, err := challenge(ctx, client, host)
	if err != nil {
		return err
	}
	registry, err := azcontainerregistry.NewAuthenticationClient("https://"+host, &azcontainerregistry.AuthenticationClientOptions{ClientOptions: azcore.ClientOptions{Transport: client}})
	if err != nil {
		return err
	}
	options := azcontainerregistry.AuthenticationClientExchangeAADAccessTokenForACRRefreshTokenOptions{AccessToken: &token.Token}
	if tenant := os.Getenv("AZURE_TENANT_ID"); tenant != "" {
		options.Tenant = &tenant
	}
	answer, err := registry.ExchangeAADAccessTokenForACRRefreshToken(ctx, azcontainerregistry.PostContentSchemaGrantTypeAccessToken, service, &options)
	if err != nil {
		return err
	}
	if answer.RefreshToken == nil {
		return errors.New("the registry gives no token")
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse", "cacheKeyType": "Registry", "cacheDuration": "1h",
		"auth": map[string]any{host: map[string]string{"username": "00000000-0000-0000-0000-000000000000", "password": *answer.RefreshToken}},
	})
}

// credential is that of the environment's application, if it names one, else the machine's.
func credential(client *http.Client) (azcore.TokenCredential, error) {
	options := azcore.ClientOptions{Transport: client}
	if os.Getenv("AZURE_CLIENT_ID") != "" {
		return azidentity.NewEnvironmentCredential(&azidentity.EnvironmentCredentialOptions{ClientOptions: options})
	}
	return azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ClientOptions: options})
}

var serviceParameter = regexp.MustCompile(`service="([^"]*)"`)

// challenge asks the registry what it calls itself.
func challenge(ctx context.Context, client *http.Client, host string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/v2/", http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil { // so that the connection can be used for the exchange
		return "", err
	}
	found := serviceParameter.FindStringSubmatch(resp.Header.Get("WWW-Authenticate"))
	if found == nil {
		return "", fmt.Errorf("the registry gives no challenge: HTTP status %d", resp.StatusCode)
	}
	return found[1], nil
}

// machine sends what is for the metadata service's fixed address to the one that the environment names, as our backend does.
type machine struct{ http.RoundTripper }

func (m machine) RoundTrip(r *http.Request) (*http.Response, error) {
	if host, ok := strings.CutPrefix(os.Getenv("AZURE_POD_IDENTITY_AUTHORITY_HOST"), "http://"); ok && r.URL.Host == "169.254.169.254" {
		r = r.Clone(r.Context())
		r.URL.Host, r.Host = host, host
	}
	return m.RoundTripper.RoundTrip(r)
}
