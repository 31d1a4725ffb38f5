"""A second way into an object store, by the clouds' own libraries: tests reach past what is being tested.

    hand.py s3 ENDPOINT BUCKET       keys in AWS_*
    hand.py azure URL CONTAINER      the account's key in AZURE_STORAGE_KEY
    hand.py gcs ENDPOINT BUCKET      an emulator that asks nobody for a name

Reads commands from standard input, a line each, and answers each with one line:

    make                ok           the bucket
    set KEY HEX         ok
    get KEY             HEX
    meta KEY            JSON         metadata
"""

import json
import sys
import urllib.parse
import urllib.request


class S3:
    def __init__(self, endpoint, bucket):
        import boto3
        from botocore.config import Config
        config = Config(retries={'max_attempts': 1}, s3={'addressing_style': 'path'})
        self.client = boto3.client('s3', endpoint_url=endpoint, config=config)
        self.bucket = bucket

    def make(self):
        self.client.create_bucket(Bucket=self.bucket)

    def set(self, key, data):
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def get(self, key):
        return self.client.get_object(Bucket=self.bucket, Key=key)['Body'].read()

    def meta(self, key):
        return self.client.head_object(Bucket=self.bucket, Key=key)['Metadata']


class Azure:
    def __init__(self, url, container):
        import os
        from azure.storage.blob import ContainerClient
        key = os.environ['AZURE_STORAGE_KEY']
        self.client = ContainerClient(url, container, credential=key)

    def make(self):
        self.client.create_container()

    def set(self, key, data):
        self.client.upload_blob(key, data, overwrite=True)

    def get(self, key):
        return self.client.download_blob(key).readall()

    def meta(self, key):
        return self.client.get_blob_client(key).get_blob_properties().metadata


class Gcs:
    def __init__(self, endpoint, bucket):
        self.endpoint, self.bucket = endpoint, bucket

    def ask(self, method, url, data=None, headers={}):
        request = urllib.request.Request(self.endpoint + url, data, headers, method=method)
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def make(self):
        body = json.dumps({'name': self.bucket}).encode()
        self.ask('POST', '/storage/v1/b', body, {'Content-Type': 'application/json'})

    def set(self, key, data):
        self.ask('PUT', f'/{self.bucket}/{key}', data, {'Content-Type': 'application/octet-stream'})

    def get(self, key):
        return self.ask('GET', f'/{self.bucket}/{key}')

    def meta(self, key):
        key = urllib.parse.quote(key, '')
        return json.loads(self.ask('GET', f'/storage/v1/b/{self.bucket}/o/{key}')).get('metadata', {})


def main():
    store = {'s3': S3, 'azure': Azure, 'gcs': Gcs}[sys.argv[1]](*sys.argv[2:])
    for line in sys.stdin:
        command, *words = line.rstrip('\n').split(' ', 2)
        if command == 'make':
            answer = store.make() or 'ok'
        elif command == 'set':
            answer = store.set(words[0], bytes.fromhex(words[1] if len(words) > 1 else '')) or 'ok'
        elif command == 'get':
            answer = store.get(words[0]).hex()
        elif command == 'meta':
            answer = json.dumps(store.meta(words[0]))
        else:
            answer = f'no such command: {command}'
        print(answer, flush=True)


main()
