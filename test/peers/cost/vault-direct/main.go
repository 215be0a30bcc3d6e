// Command vault-direct is the plain client beside which the Vault backend's cost is measured: `vault login` and `vault kv get`, or `vault read`, by Vault's own Go library, in one process. It reads the kubelet's request, logs in by
// AppRole or with the request's token, asks what the command line tool asks, and writes the kubelet's response: nothing kept, nothing checked. Its login it leaves to Vault, which ends it in a month unless the role says otherwise,
// or gives it back as well-behaved clients do, where it is told to. Vault's address and CA are the environment's, as ever.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/api/auth/approle"
	"github.com/hashicorp/vault/api/auth/kubernetes"
)

func main() {
	c := command{}
	flag.StringVar(&c.roleID, "role-id", "", "log in by AppRole, as this one")
	flag.StringVar(&c.secretIDFile, "secret-id-file", "", "the file with the AppRole's secret ID")
	flag.StringVar(&c.role, "role", "", "log in to this role with the request's token")
	flag.StringVar(&c.auth, "auth", "", "where the auth method is mounted")
	flag.StringVar(&c.mount, "mount", "", "the KV v2 engine that the secret is known to be in")
	flag.BoolVar(&c.dynamic, "dynamic", false, "the secret is of an engine that makes it")
	flag.BoolVar(&c.revoke, "revoke", false, "give the login back")
	start := flag.Bool("version", false, "only its start is wanted")
	flag.Parse()
	if *start {
		return
	}
	c.path = flag.Arg(0)
	if err := c.run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "vault-direct:", err)
		os.Exit(1)
	}
}

type command struct {
	roleID, secretIDFile, role, auth string
	mount, path                      string
	dynamic, revoke                  bool
}

func (c command) run(ctx context.Context) error {
	var request struct{ Image, ServiceAccountToken string }
	if err := json.NewDecoder(os.Stdin).Decode(&request); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	host, _, _ := strings.Cut(request.Image, "/")
	client, err := api.NewClient(api.DefaultConfig())
	if err != nil {
		return err
	}
	method, err := c.method(request.ServiceAccountToken)
	if err != nil {
		return err
	}
	if _, err := client.Auth().Login(ctx, method); err != nil { // which has the client keep the token
		return err
	}
	data, err := c.secret(ctx, client)
	if err != nil {
		return err
	}
	if c.revoke {
		if err := client.Auth().Token().RevokeSelfWithContext(ctx, ""); err != nil {
			return err
		}
	}
	username, _ := data["username"].(string)
	password, _ := data["password"].(string)
	if username == "" || password == "" {
		return errors.New("the secret has no user name, or no password")
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse", "cacheKeyType": "Registry", "cacheDuration": "5m",
		"auth": map[string]any{host: map[string]string{"username": username, "password": password}},
	})
}

func (c command) method(token string) (api.AuthMethod, error) {
	if c.roleID == "" {
		return kubernetes.NewKubernetesAuth(c.role, kubernetes.WithServiceAccountToken(token), kubernetes.WithMountPath(c.auth))
	}
	return approle.NewAppRoleAuth(c.roleID, &approle.SecretID{FromFile: c.secretIDFile}, approle.WithMountPath(c.auth))
}

func (c command) secret(ctx context.Context, client *api.Client) (map[string]any, error) {
	switch {
	case c.dynamic: // `vault read`
		return read(ctx, client, c.path)
	case c.mount != "": // whoever knows the engine needs no question
		secret, err := client.KVv2(c.mount).Get(ctx, strings.TrimPrefix(c.path, c.mount+"/"))
		if err != nil {
			return nil, err
		}
		return secret.Data, nil
	}
	// `vault kv get` asks which engine the path is in, and of which version that is.
	engine, err := read(ctx, client, "sys/internal/ui/mounts/"+c.path)
	if err != nil {
		return nil, err
	}
	options, _ := engine["options"].(map[string]any)
	if options["version"] != "2" {
		return read(ctx, client, c.path)
	}
	mount, _ := engine["path"].(string)
	data, err := read(ctx, client, mount+"data/"+strings.TrimPrefix(c.path, mount))
	if err != nil {
		return nil, err
	}
	inner, _ := data["data"].(map[string]any)
	return inner, nil
}

func read(ctx context.Context, client *api.Client, path string) (map[string]any, error) {
	secret, err := client.Logical().ReadWithContext(ctx, path)
	if err != nil {
		return nil, err
	}
	if secret == nil {
		return nil, fmt.Errorf("there is nothing at %s", path)
	}
	return secret.Data, nil
}
