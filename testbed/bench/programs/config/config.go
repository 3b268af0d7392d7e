// Package config tells the programs that bench weighs where the API server is.
package config

import (
	"encoding/json"
	"fmt"
	"os"

	"k8s.io/client-go/rest"
)

// Config is what bench writes to a program's standard input.
type Config struct {
	Host, Lease          string
	Authority, Cert, Key []byte // PEM
}

// Read returns what is there to be read, and ends the program if that is no Config.
func Read() (*rest.Config, string) {
	var c Config
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		Exit(fmt.Errorf("read standard input: %w; want bench to start this program", err))
	}
	return &rest.Config{
		Host:            c.Host,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.Authority, CertData: c.Cert, KeyData: c.Key},
	}, c.Lease
}

// Exit ends the program because of an error.
func Exit(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// Ready is the line by which a program says that it does its work.
const Ready = "ready"
