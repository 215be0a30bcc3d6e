package vaultserver

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/credential-broker/credential-broker/test/cloud"
)

// callerIdentity is a signed request for sts:GetCallerIdentity, as the login takes it (https://developer.hashicorp.com/vault/api-docs/auth/aws#login).
func callerIdentity(t *testing.T, k cloud.Keys, host, region, role string, header map[string]string) map[string]any {
	t.Helper()
	const body = "Action=GetCallerIdentity&Version=2011-06-15"
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+host+"/", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	for name, value := range header {
		r.Header.Set(name, value)
	}
	sum := sha256.Sum256([]byte(body))
	credentials := aws.Credentials{AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey, SessionToken: k.SessionToken}
	if err := v4.NewSigner().SignHTTP(t.Context(), credentials, r, hex.EncodeToString(sum[:]), "sts", region, time.Now()); err != nil {
		t.Fatal(err)
	}
	headers, err := json.Marshal(r.Header)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"role": role, "iam_http_request_method": r.Method, "iam_request_url": base64.StdEncoding.EncodeToString([]byte(r.URL.String())),
		"iam_request_body": base64.StdEncoding.EncodeToString([]byte(body)), "iam_request_headers": base64.StdEncoding.EncodeToString(headers),
	}
}

func TestAWS(t *testing.T) {
	c := cloud.New(t)
	s := New(t, Options{Cloud: c})
	const node, other = "arn:aws:iam::111122223333:role/node", "arn:aws:iam::111122223333:role/other"
	c.AddRole(cloud.Role{ARN: node})
	c.AddRole(cloud.Role{ARN: other})
	s.AWS("aws", "puller", node, []string{"default"})
	keys := c.Session(node, "i-0123456789", time.Hour)
	secret, err := s.login("aws", callerIdentity(t, keys, "sts.amazonaws.com", "us-east-1", "puller", nil))
	if err != nil {
		t.Fatal(err)
	}
	if got := secret.Auth.Metadata["account_id"]; got != "111122223333" {
		t.Errorf("account %q", got)
	}
	_, err = s.login("aws", callerIdentity(t, c.Session(other, "i-1", time.Hour), "sts.amazonaws.com", "us-east-1", "puller", nil))
	wantRefusal(t, err, http.StatusBadRequest, "does not belong to the role")
	_, err = s.login("aws", callerIdentity(t, keys, "sts.amazonaws.com", "us-east-1", "none", nil))
	wantRefusal(t, err, http.StatusBadRequest, "entry for role")
	forged := keys
	forged.SecretAccessKey += "x"
	_, err = s.login("aws", callerIdentity(t, forged, "sts.amazonaws.com", "us-east-1", "puller", nil))
	wantRefusal(t, err, http.StatusBadRequest, "SignatureDoesNotMatch")

	// Signed for one region's STS, it is good there only.
	_, err = s.login("aws", callerIdentity(t, keys, "sts.eu-west-1.amazonaws.com", "eu-west-1", "puller", nil))
	if err == nil {
		t.Error("a request for another endpoint than the server's was taken")
	}
	s.AWSClient("aws", map[string]any{"sts_endpoint": "https://sts.eu-west-1.amazonaws.com", "sts_region": "eu-west-1", "iam_server_id_header_value": "vault.example"})
	_, err = s.login("aws", callerIdentity(t, keys, "sts.eu-west-1.amazonaws.com", "eu-west-1", "puller", nil))
	wantRefusal(t, err, http.StatusBadRequest, "missing header")
	if _, err = s.login("aws", callerIdentity(t, keys, "sts.eu-west-1.amazonaws.com", "eu-west-1", "puller", map[string]string{"X-Vault-AWS-IAM-Server-ID": "vault.example"})); err != nil {
		t.Error(err)
	}
}

func TestAWSNeedsACloud(t *testing.T) {
	s := New(t, Options{})
	s.t = nil
	defer func() {
		if recover() == nil {
			t.Error("a server that reaches no cloud has a login by AWS")
		}
	}()
	s.AWS("aws", "puller", "arn:aws:iam::111122223333:role/node", nil)
}
