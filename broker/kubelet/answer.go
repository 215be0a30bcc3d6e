package kubelet

import (
	"context"

	"github.com/credential-broker/credential-broker/broker"
)

// Answer is what a credential provider does with what the kubelet writes to it: it reads the request, has it resolved, and gives the response to write back, in the version of the
// request. An error that resolve returns is returned as it is.
func Answer(ctx context.Context, data []byte, resolve func(context.Context, broker.Request) (broker.Result, error)) ([]byte, error) {
	request, version, err := ReadRequest(data)
	if err != nil {
		return nil, err
	}
	result, err := resolve(ctx, request)
	if err != nil {
		return nil, err
	}
	return ResponseOf(result.Response).Encode(version)
}

// ResponseOf is the broker's response as the kubelet's document.
func ResponseOf(r broker.Response) Response {
	response := Response{
		CacheKeyType: string(r.CacheKeyType), CacheDuration: r.CacheDuration, Auth: make(map[string]AuthConfig, len(r.Auth)),
	}
	for _, entry := range r.Auth {
		response.Auth[entry.Key] = AuthConfig{Username: entry.Username, Password: entry.Password}
	}
	return response
}
