module github.com/credential-broker/credential-broker/test/fleet

go 1.26.0

replace github.com/credential-broker/credential-broker => ../..

require (
	github.com/credential-broker/credential-broker v0.0.0
	github.com/google/go-cmp v0.7.0
)
