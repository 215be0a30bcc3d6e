package ecr

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/test/cloud"
)

func credentialsFile(keys cloud.Keys) string {
	s := "[default]\naws_access_key_id=" + keys.AccessKeyID + "\naws_secret_access_key=" + keys.SecretAccessKey + "\n"
	if keys.SessionToken != "" {
		s += "aws_session_token=" + keys.SessionToken + "\n"
	}
	return s
}

// TestCredentialsThatAreExchanged: a backend that lives on sees what has been put into the shared files since.
func TestCredentialsThatAreExchanged(t *testing.T) {
	aws := setUp(t)
	addNodeRole(aws)
	file := write(t, credentialsFile(aws.Session(nodeRole, "old", -time.Minute)))
	setenv(t, "AWS_SHARED_CREDENTIALS_FILE="+file)
	b := backendFor(t, aws, Config{})
	_, err := b.Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, backends.KindUnavailable, "ExpiredTokenException")
	if err := os.WriteFile(file, []byte(credentialsFile(aws.Session(nodeRole, "new", time.Hour))), 0o600); err != nil {
		t.Fatal(err)
	}
	pull(t, aws, b, backends.Request{Image: image})
}

// TestNothingOutlivesAPodsToken: what was got for it is not given for it once it has expired, by this machine's clock.
func TestNothingOutlivesAPodsToken(t *testing.T) {
	aws := setUp(t)
	aws.AddRole(cloud.Role{ARN: podRole, Trust: []cloud.Trust{{Federated: cluster, Audience: "sts.amazonaws.com", Subject: "*"}}, Policy: cloud.PullPolicy()})
	token := serviceAccountToken(aws.AddIssuer(cluster), "team-a", "x", nil)
	aws.AddOIDCProvider(account, cluster, "sts.amazonaws.com")
	now := time.Now()
	b := backendFor(t, aws, Config{PodRoleARN: podRole})
	b.tokens.Now = func() time.Time { return now }
	req := backends.Request{Image: image, Token: backends.Secret(token)}
	pull(t, aws, b, req)
	now = now.Add(59 * time.Minute)
	pull(t, aws, b, req)
	if n := len(principals(aws)); n != 1 {
		t.Fatalf("asked %d times within the token's hour, want once", n)
	}
	now = now.Add(2 * time.Minute)
	_, _ = b.Credentials(t.Context(), req)
	if n := len(principals(aws)); n != 2 {
		t.Errorf("asked %d times beyond the token's hour, want twice", n)
	}
}

// TestASlowContainerEndpoint: EKS's agent asks a service of AWS before it answers.
func TestASlowContainerEndpoint(t *testing.T) {
	aws := setUp(t)
	addNodeRole(aws)
	keys := aws.Session(nodeRole, "pod", time.Hour)
	answer := time.NewTimer(1250 * time.Millisecond) // what answers from the machine itself has a second
	defer answer.Stop()
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-answer.C:
			fmt.Fprintf(w, `{"AccessKeyId":%q,"SecretAccessKey":%q,"Token":%q,"Expiration":%q}`, keys.AccessKeyID, keys.SecretAccessKey, keys.SessionToken, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
		case <-r.Context().Done():
		}
	}))
	defer endpoint.Close()
	setenv(t, "AWS_CONTAINER_CREDENTIALS_FULL_URI="+endpoint.URL)
	pull(t, aws, backendFor(t, aws, Config{}), backends.Request{Image: image})
}

// TestSTSEndpoints: an endpoint of STS is used as it is, by the chain's web identity too.
func TestSTSEndpoints(t *testing.T) {
	const endpoint = "vpce-1.sts.eu-west-1.vpce.amazonaws.com"
	for _, c := range []struct {
		name string
		cfg  Config
		env  []string
		want string
	}{
		{"settings", Config{STSEndpoint: "https://" + endpoint}, nil, endpoint},
		{"environment, with kinds", Config{}, []string{"AWS_ENDPOINT_URL_STS=https://" + endpoint, "AWS_USE_DUALSTACK_ENDPOINT=true"}, endpoint},
		{"region", Config{STSRegion: "us-west-2"}, nil, "sts.us-west-2.amazonaws.com"},
		{"kind of its own", Config{}, []string{"AWS_USE_DUALSTACK_ENDPOINT=true"}, "sts.eu-west-1.api.aws"},
	} {
		t.Run(c.name, func(t *testing.T) {
			aws := setUp(t, c.env...)
			aws.AddEndpoint(endpoint, "sts", "eu-west-1")
			issuer := aws.AddIssuer(cluster)
			aws.AddOIDCProvider(account, cluster, "sts.amazonaws.com")
			addNodeRole(aws, cloud.Trust{Federated: cluster, Audience: "sts.amazonaws.com", Subject: "*"})
			setenv(t, "AWS_ROLE_ARN="+nodeRole, "AWS_WEB_IDENTITY_TOKEN_FILE="+write(t, serviceAccountToken(issuer, "kube-system", "node", nil)))
			pull(t, aws, backendFor(t, aws, c.cfg), backends.Request{Image: image})
			if i := slices.IndexFunc(aws.Requests(), func(r cloud.Request) bool { return r.Service == "sts" }); i < 0 || aws.Requests()[i].Host != c.want {
				t.Errorf("asked %+v, want %s", aws.Requests(), c.want)
			}
		})
	}
}

// TestRolesThatMeanNothingToECRPublic: nobody is asked for what cannot be.
func TestRolesThatMeanNothingToECRPublic(t *testing.T) {
	aws := setUp(t)
	setenv(t, aws.AddUser(nodeUser, cloud.PublicPolicy()...).Environ()...)
	b := backendFor(t, aws, Config{RoleARN: roleC})
	for _, req := range []backends.Request{{}, {Token: "t", Annotations: map[string]string{roleAnnotation: roleC}}} {
		req.Image = "public.ecr.aws/team/app"
		if r, err := b.Credentials(t.Context(), req); err != nil || len(r.Credentials) > 0 || r.CacheDuration == nil {
			t.Errorf("got %+v, %v; want to go on anonymously", r, err)
		}
	}
	if asked := operations(aws); len(asked) > 0 {
		t.Errorf("asked for %q", asked)
	}
}

// TestCheckWithoutAnImage: who one is can be told without.
func TestCheckWithoutAnImage(t *testing.T) {
	aws := setUp(t)
	setenv(t, aws.AddUser("arn:aws-cn:iam::111111111111:user/node").Environ()...)
	setenv(t, "AWS_CONFIG_FILE="+write(t, "[default]\nregion=cn-north-1\n"))
	if err := backendFor(t, aws, Config{}).Check(t.Context(), backends.Request{}); err != nil {
		t.Error(err)
	}
	if r := aws.Requests(); len(r) != 1 || r[0].Host != "sts.cn-north-1.amazonaws.com.cn" {
		t.Errorf("asked %+v", r)
	}
	if err := backendFor(t, aws, Config{PodIdentity: settings.PodIdentityRequire}).Check(t.Context(), backends.Request{}); err != nil {
		t.Errorf("without a pod: %v", err)
	}
}

// TestConnectionsAreUsedAgain by the sessions that come later.
func TestConnectionsAreUsedAgain(t *testing.T) {
	aws := setUp(t)
	issuer := aws.AddIssuer(cluster)
	aws.AddOIDCProvider(account, cluster, "sts.amazonaws.com")
	aws.AddRole(cloud.Role{ARN: podRole, Trust: []cloud.Trust{{Federated: cluster, Audience: "sts.amazonaws.com", Subject: "*"}}, Policy: cloud.PullPolicy()})
	b := backendFor(t, aws, Config{PodRoleARN: podRole})
	for _, name := range []string{"a", "b", "c"} {
		pull(t, aws, b, backends.Request{Image: image, Token: backends.Secret(serviceAccountToken(issuer, "team-a", name, nil))})
	}
	for _, host := range []string{"sts.eu-west-1.amazonaws.com", "api.ecr.eu-west-1.amazonaws.com"} {
		if n := aws.Connections(host); n != 1 {
			t.Errorf("%d connections to %s, want 1", n, host)
		}
	}
}

// TestNothingIsLeftBehind: the SDK asks for the chain's credentials in the background, and may go on after the request is over.
func TestNothingIsLeftBehind(t *testing.T) {
	aws := setUp(t)
	ended := filepath.Join(t.TempDir(), "ended")
	program := filepath.Join(t.TempDir(), "process")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho $$ >"+ended+"\nexec sleep 600\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	setenv(t, "AWS_CONFIG_FILE="+write(t, "[default]\ncredential_process = "+program+"\n"))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := backendFor(t, aws, Config{}).Credentials(ctx, backends.Request{Image: image})
	fails(t, err, backends.KindUnavailable, "no answer in time")
	pid, err := os.ReadFile(ended)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); exec.Command("kill", "-0", strings.TrimSpace(string(pid))).Run() == nil; {
		if time.Now().After(deadline) {
			t.Fatal("the credential_process lives on")
		}
	}
}
