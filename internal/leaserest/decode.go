package leaserest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

const (
	contentJSON     = "application/json"
	contentProtobuf = "application/vnd.kubernetes.protobuf"
)

// A message is an API object, which reads itself from JSON and from protobuf.
type message interface{ Unmarshal([]byte) error }

// decode reads an object of the type of into.
func decode(content string, data []byte, into message) error {
	switch mediaType(content) {
	case contentProtobuf:
		return decodeProtobuf(data, into)
	case contentJSON:
		return decodeJSON(data, into)
	}
	return fmt.Errorf("content type %q: want %s or %s", content, contentJSON, contentProtobuf)
}

// mediaType returns a content type without its parameters.
func mediaType(content string) string {
	kind, _, _ := strings.Cut(content, ";")
	return strings.TrimSpace(kind)
}

// kindOf returns the kind that the type of into is for.
func kindOf(into message) string {
	switch into.(type) {
	case *coordinationv1.Lease:
		return "Lease"
	case *coordinationv1.LeaseList:
		return "LeaseList"
	case *metav1.Status:
		return "Status"
	}
	return ""
}

func decodeJSON(data []byte, into message) error {
	var typed metav1.TypeMeta
	if err := json.Unmarshal(data, &typed); err != nil {
		return err
	}
	if err := checkKind(typed.Kind, into); err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func checkKind(kind string, into message) error {
	if want := kindOf(into); kind != want {
		return fmt.Errorf("an object of kind %q, want %s", kind, want)
	}
	return nil
}

// envelope begins a protobuf message of Kubernetes, whose rest is a runtime.Unknown.
var envelope = []byte{'k', '8', 's', 0}

func decodeProtobuf(data []byte, into message) error {
	inner, ok := bytes.CutPrefix(data, envelope)
	if !ok {
		return fmt.Errorf("a protobuf message begins with %q, want %q", data[:min(len(data), len(envelope))], envelope)
	}
	unknown := &runtime.Unknown{}
	if err := unknown.Unmarshal(inner); err != nil {
		return err
	}
	if err := checkKind(unknown.Kind, into); err != nil {
		return err
	}
	return into.Unmarshal(unknown.Raw)
}

// An events reads the events of a watch from its answer.
type events interface {
	// next returns the type of the next event, and its object, which is valid until the next call.
	next() (kind string, object []byte, err error)
}

func newEvents(content string, from io.Reader) (events, error) {
	switch mediaType(content) {
	case contentProtobuf:
		return &protobufEvents{from: from}, nil
	case contentJSON:
		limited := &io.LimitedReader{R: from}
		return jsonEvents{limited, json.NewDecoder(limited)}, nil
	}
	return nil, fmt.Errorf("content type %q: want %s or %s", content, contentJSON, contentProtobuf)
}

type jsonEvents struct {
	from    *io.LimitedReader // of the decoder, which may have read more than one event
	decoder *json.Decoder
}

func (e jsonEvents) next() (string, []byte, error) {
	var event struct {
		Type   string          `json:"type"`
		Object json.RawMessage `json:"object"`
	}
	e.from.N = mostBytes
	err := e.decoder.Decode(&event)
	if err != nil && e.from.N == 0 {
		err = fmt.Errorf("an event of more than %d bytes", mostBytes)
	}
	return event.Type, event.Object, err
}

// protobufEvents are messages without an envelope that each follow their length. The object in each has one.
type protobufEvents struct {
	from   io.Reader
	length [4]byte
	buffer []byte
	event  metav1.WatchEvent
}

func (e *protobufEvents) next() (string, []byte, error) {
	if _, err := io.ReadFull(e.from, e.length[:]); err != nil {
		return "", nil, err
	}
	n := binary.BigEndian.Uint32(e.length[:])
	if n > mostBytes {
		return "", nil, fmt.Errorf("an event of %d bytes, want %d at most", n, mostBytes)
	}
	if uint32(cap(e.buffer)) < n {
		e.buffer = make([]byte, n)
	}
	data := e.buffer[:n]
	if _, err := io.ReadFull(e.from, data); err != nil {
		return "", nil, io.ErrUnexpectedEOF
	}
	e.event.Type, e.event.Object.Raw = "", e.event.Object.Raw[:0]
	if err := e.event.Unmarshal(data); err != nil {
		return "", nil, err
	}
	return e.event.Type, e.event.Object.Raw, nil
}
