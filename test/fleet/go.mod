module github.com/credential-broker/credential-broker/test/fleet

go 1.26.0

replace github.com/credential-broker/credential-broker => ../..

require (
	github.com/credential-broker/credential-broker v0.0.0
	github.com/google/go-cmp v0.7.0
)

require (
	go.yaml.in/yaml/v3 v3.0.6 // indirect
	golang.org/x/sys v0.49.0 // indirect
)
