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

// A gateway stands between a candidate and the API server, and answers in its place when it is told to.
type gateway struct {
	mode atomic.Value // the last line of the harness about it, a string
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
		Header: http.Header{"Content-Type": {contentType}}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
	}
}

// noSuchLease is what the API server says of a Lease that is not there.
func noSuchLease() string {
	status := apierrors.NewNotFound(schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}, alone).ErrStatus
	status.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	body, err := json.Marshal(status)
	if err != nil {
		panic(err) // it is plain data
	}
	return string(body)
}
