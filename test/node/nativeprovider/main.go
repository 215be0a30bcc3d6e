// Program nativeprovider is a credential provider as the kubelet runs them, without a broker: one request on standard input, one response on standard output. It answers for the registry in its first
// argument with the user in its second and the password in the environment variable PASSWORD, and notes each run in the file in its third, by the name that it was started under.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1 "k8s.io/kubelet/pkg/apis/credentialprovider/v1"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(registry, user, journal string) error {
	var request v1.CredentialProviderRequest
	if err := json.NewDecoder(os.Stdin).Decode(&request); err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	notes, err := os.OpenFile(journal, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer notes.Close()
	if _, err := fmt.Fprintln(notes, filepath.Base(os.Args[0]), request.Image); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(v1.CredentialProviderResponse{
		TypeMeta:      metav1.TypeMeta{APIVersion: "credentialprovider.kubelet.k8s.io/v1", Kind: "CredentialProviderResponse"},
		CacheKeyType:  v1.RegistryPluginCacheKeyType,
		CacheDuration: &metav1.Duration{},
		Auth:          map[string]v1.AuthConfig{registry: {Username: user, Password: os.Getenv("PASSWORD")}},
	})
}
