module github.com/credential-broker/credential-broker/tools/release

go 1.26.0

require (
	github.com/github/go-spdx/v2 v2.8.0
	github.com/google/licensecheck v0.3.1
	github.com/in-toto/attestation v1.2.0
	github.com/spdx/tools-golang v0.5.7
	golang.org/x/mod v0.39.0
	google.golang.org/protobuf v1.36.12
)

require github.com/anchore/go-struct-converter v0.1.0 // indirect
