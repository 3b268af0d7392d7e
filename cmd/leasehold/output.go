package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"k8s.io/client-go/util/jsonpath"
)

// An output is a value of --output for Leases, with a template where kubectl has one.
type output struct {
	kind     string
	text     string // as it was given
	template func(w io.Writer, object any) error
	columns  []column
}

// A column is one of custom-columns: a header and a path.
type column struct {
	header string
	path   *jsonpath.JSONPath
}

// outputs are the kinds, in the order of help and completion; a template follows a kind that ends in "=".
var outputs = []string{
	"table", "wide", "json", "yaml", "name", "jsonpath=", "jsonpath-file=", "jsonpath-as-json=", "go-template=",
	"go-template-file=", "custom-columns=", "custom-columns-file=",
}

const outputHelp = "output `format`: table, wide, json, yaml, name, jsonpath=TEMPLATE, go-template=TEMPLATE, " +
	"custom-columns=HEADER:PATH,…; jsonpath-file, go-template-file and custom-columns-file read it from a file"

func (o output) MarshalText() ([]byte, error) { return []byte(o.text), nil }

func (o *output) UnmarshalText(text []byte) error {
	*o = output{text: string(text)}
	kind, argument, given := strings.Cut(o.text, "=")
	o.kind = kind
	if kind == "custom-columns" && !given && slices.Contains(outputs, kind+"=") {
		return errors.New("want custom-columns=HEADER:PATH,…")
	}
	switch {
	case !given && slices.Contains(outputs, kind):
		return nil
	case !slices.Contains(outputs, kind+"="):
		return fmt.Errorf("want %s or %s", strings.Join(outputs[:len(outputs)-1], ", "), outputs[len(outputs)-1])
	case argument == "":
		return fmt.Errorf("missing the template after %q", kind+"=")
	}
	kind, fromFile := strings.CutSuffix(kind, "-file")
	if fromFile {
		content, err := os.ReadFile(argument)
		if err != nil {
			return err
		}
		argument = string(content)
	}
	var err error
	switch kind {
	case "jsonpath", "jsonpath-as-json":
		err = o.jsonpath(argument, kind == "jsonpath-as-json")
	case "go-template":
		err = o.goTemplate(argument)
	case "custom-columns":
		if fromFile {
			err = o.columnsFile(argument)
		} else {
			err = o.customColumns(argument)
		}
	}
	return err
}

func (o *output) jsonpath(text string, asJSON bool) error {
	path := jsonpath.New("output").AllowMissingKeys(true)
	path.EnableJSONOutput(asJSON)
	o.template = path.Execute
	return path.Parse(text)
}

func (o *output) goTemplate(text string) error {
	t, err := template.New("output").Funcs(template.FuncMap{
		"base64decode": func(text string) (string, error) {
			decoded, err := base64.StdEncoding.DecodeString(text)
			return string(decoded), err
		},
	}).Parse(text)
	o.template = func(w io.Writer, object any) error {
		var b bytes.Buffer // nothing is printed of a template that fails
		if err := t.Execute(&b, object); err != nil {
			return err
		}
		_, err := w.Write(b.Bytes())
		return err
	}
	return err
}

// customColumns reads HEADER:PATH,….
func (o *output) customColumns(spec string) error {
	for _, part := range strings.Split(spec, ",") {
		header, path, found := strings.Cut(part, ":")
		if !found || header == "" || path == "" {
			return fmt.Errorf("custom column %q: want HEADER:PATH, as HOLDER:.spec.holderIdentity", part)
		}
		if err := o.column(header, path); err != nil {
			return err
		}
	}
	return nil
}

// columnsFile reads a line of headers and a line of paths.
func (o *output) columnsFile(text string) error {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 2 {
		return fmt.Errorf("custom-columns-file: want a line of headers and a line of paths, not %d lines", len(lines))
	}
	headers, paths := strings.Fields(lines[0]), strings.Fields(lines[1])
	if len(headers) != len(paths) {
		return fmt.Errorf("custom-columns-file: %d headers and %d paths", len(headers), len(paths))
	}
	for i, header := range headers {
		if err := o.column(header, paths[i]); err != nil {
			return err
		}
	}
	return nil
}

// relaxedPath is a path as kubectl takes it: with or without braces and a leading dot.
var relaxedPath = regexp.MustCompile(`^(?:\{\.?([^{}]+)\}|\.?([^{}]+))$`)

func (o *output) column(header, path string) error {
	match := relaxedPath.FindStringSubmatch(path)
	if match == nil {
		return fmt.Errorf("custom column %s: path %q: want a path as .spec.holderIdentity", header, path)
	}
	c := column{header, jsonpath.New(header).AllowMissingKeys(true)}
	o.columns = append(o.columns, c)
	return c.path.Parse("{." + match[1] + match[2] + "}")
}

// value returns the values that the path finds in a Lease.
func (c column) value(object any) (string, error) {
	results, err := c.path.FindResults(object)
	if err != nil {
		return "", err
	}
	var values []string
	for _, result := range results {
		for _, v := range result {
			values = append(values, printable(fmt.Sprint(v.Interface())))
		}
	}
	if len(values) == 0 {
		return "<none>", nil
	}
	return strings.Join(values, ","), nil
}
