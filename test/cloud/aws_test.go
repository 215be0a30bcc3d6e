package cloud

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/smithy-go"
)

const (
	testAccount = "111122223333"
	testUser    = "arn:aws:iam::" + testAccount + ":user/node"
	testRole    = "arn:aws:iam::" + testAccount + ":role/path/puller"
	testHost    = testAccount + ".dkr.ecr.eu-west-1.amazonaws.com"
)

// config is an SDK client's, without retries, so that each request has one answer.
func (c *Cloud) config(t testing.TB, k Keys, region string) aws.Config {
	t.Helper()
	client := c.Client()
	t.Cleanup(client.CloseIdleConnections)
	return aws.Config{
		Region: region, HTTPClient: client, Credentials: credentials.NewStaticCredentialsProvider(k.AccessKeyID, k.SecretAccessKey, k.SessionToken),
		Retryer: func() aws.Retryer { return aws.NopRetryer{} },
	}
}

// said is what an API's error comes to: status and code; "" for no error.
func said(err error) string {
	var api smithy.APIError
	var response *awshttp.ResponseError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &api) && errors.As(err, &response):
		return fmt.Sprintf("%d %s", response.HTTPStatusCode(), api.ErrorCode())
	default:
		return err.Error()
	}
}

// keysOf makes a user that may do anything.
func keysOf(c *Cloud) Keys { return c.AddUser(testUser, Statement{Actions: []string{"*"}}) }

// last is the latest request in the log.
func (c *Cloud) last(t *testing.T) Request {
	t.Helper()
	all := c.Requests()
	if len(all) == 0 {
		t.Fatal("the log of requests is empty")
	}
	return all[len(all)-1]
}

// fixed is a clock that stands still until SetClockOffset.
func fixed(t testing.TB) *Cloud {
	t.Helper()
	at := time.Now().Truncate(time.Second)
	c, err := Start(Options{Now: func() time.Time { return at }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// changed lets a test spoil requests after they were signed.
type changed struct {
	to     *http.Client
	change func(*http.Request)
}

func (d changed) Do(r *http.Request) (*http.Response, error) {
	d.change(r)
	return d.to.Do(r)
}
