package main

import (
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/leasehold-go/leasehold"
)

// serve answers requests about the leases of monitor until the process ends.
func serve(address string, monitor *leasehold.Monitor) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/leases", monitor)
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		w.Write(metrics(monitor.Leases(), monitor.Groups()))
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, req *http.Request) {
		if err := monitor.Check(req); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(listener)
	return nil
}
