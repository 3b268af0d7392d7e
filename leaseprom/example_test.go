package leaseprom_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leaseprom"
	"github.com/leasehold-go/leasehold/leasetest"
)

// A program that serves metrics, the Monitor's JSON and a liveness check beside its work.
func Example() {
	var monitor leasehold.Monitor
	registry := prometheus.NewRegistry()
	registry.MustRegister(leaseprom.NewCollector(&monitor))

	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.Handle("/leases", &monitor)
	mux.HandleFunc("/livez", func(w http.ResponseWriter, req *http.Request) {
		if err := monitor.Check(req); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	server := httptest.NewServer(mux) // in a program: http.ListenAndServe
	defer server.Close()

	for range leasehold.Sessions(context.Background(),
		leasehold.WithLease("reconciler"),
		leasehold.WithNamespace("default"),
		leasehold.WithMonitor(&monitor),
		leasehold.WithClient(leasetest.NewServer().Client("example")), // to run anywhere
	) {
		response, err := http.Get(server.URL + "/metrics")
		if err != nil {
			panic(err)
		}
		defer response.Body.Close()
		text, _ := io.ReadAll(response.Body)
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "leader_election_") || strings.HasPrefix(line, "leasehold_leading") {
				fmt.Print(line)
			}
		}
		break
	}
	http.DefaultClient.CloseIdleConnections()
	// Output:
	// leader_election_master_status{name="reconciler"} 1
	// leasehold_leading{name="reconciler",namespace="default"} 1
}
