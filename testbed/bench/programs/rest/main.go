// Command rest is a program with client-go's transport alone, which reads Leases from time to time. bench weighs it, as
// the floor of what a client of an API server weighs.
package main

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold/testbed/bench/programs/config"
)

func main() {
	cfg, _ := config.Read()
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		config.Exit(err)
	}
	for ready := false; ; time.Sleep(3 * time.Second) {
		resp, err := client.Get(cfg.Host + "/apis/coordination.k8s.io/v1/namespaces/default/leases?limit=1")
		if err != nil {
			config.Exit(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK && !ready {
			ready = true
			fmt.Println(config.Ready)
		}
	}
}
