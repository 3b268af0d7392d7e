package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A gateway stands between a candidate and the API server and can answer requests in its place.
type gateway struct {
	mode atomic.Value // a string: the last command of the harness to it
}

// wrap returns a transport that goes through the gateway.
func (g *gateway) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		switch g.mode.Load() {
		case gatewayPage:
			return answer(req, "text/plain; charset=utf-8", "404 page not found\n"), nil
		case gatewayStatus:
			return answer(req, "application/json", noSuchLease()), nil
		}
		return next.RoundTrip(req)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func answer(req *http.Request, contentType, body string) *http.Response {
	if req.Body != nil {
		req.Body.Close()
	}
	return &http.Response{
		Status: "404 Not Found", StatusCode: http.StatusNotFound, Proto: "HTTP/2.0", ProtoMajor: 2, Request: req,
		Header: http.Header{"Content-Type": {contentType}}, Body: io.NopCloser(strings.NewReader(body)),
		ContentLength: int64(len(body)),
	}
}

// noSuchLease returns the Status by which the API server reports that a Lease does not exist.
func noSuchLease() string {
	status := apierrors.NewNotFound(schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"},
		alone).ErrStatus
	status.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	body, err := json.Marshal(status)
	if err != nil {
		panic(err) // it is plain data
	}
	return string(body)
}
